// Runs the test files of one suite with node:test. `unit`: everything beside the code and under test/ except
// what needs peer programs; `peers`: test/peers. Further arguments narrow the files by substring.
import { readdirSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { compile } from './compile.mjs';

function* walk(dir) {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* walk(path);
    else if (entry.name.endsWith('.test.ts')) yield path;
  }
}

const [suite, ...narrow] = process.argv.slice(2);
const isPeer = (path) => path.startsWith(join('test', 'peers'));
const all = [...walk('src'), ...walk('test')].sort();
const files = all
  .filter((path) => (suite === 'peers' ? isPeer(path) : !isPeer(path)))
  .filter((path) => narrow.length === 0 || narrow.some((part) => path.includes(part)));
if (files.length === 0) {
  console.error(`no test file of suite '${suite}' matches ${narrow.join(' ')}`);
  process.exit(1);
}
const concurrency = process.env.TEST_CONCURRENCY ?? '2';
const compiled = await compile();
const args = [
  '--enable-source-maps',
  '--import',
  new URL('assert-messages.mjs', import.meta.url).href,
  '--test',
  `--test-concurrency=${concurrency}`,
  '--test-reporter=spec',
  ...files.map((path) => join(compiled, path.replace(/\.ts$/, '.js'))),
];
const child = spawn(process.execPath, args, {
  stdio: 'inherit',
  env: { ...process.env, LIVEDISK_COMPILED: compiled },
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
