// Runs the test files of one suite with node:test. `unit`: everything beside the code and under test/ except
// what needs peer programs; `peers`: test/peers, with --peer=FOLDER beside QEMU's programs of an unpacked package. Further
// arguments narrow the files by substring.
import { readdirSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { dirname, join, resolve } from 'node:path';
import { compile } from './compile.mjs';

function* walk(dir) {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* walk(path);
    else if (entry.name.endsWith('.test.ts')) yield path;
  }
}

const [suite, ...words] = process.argv.slice(2);
const PEER = '--peer=';
const narrow = words.filter((word) => !word.startsWith(PEER));
/** The folder of an unpacked package, whose programs are the peers in place of the system's. */
const peer = words.find((word) => word.startsWith(PEER))?.slice(PEER.length);
const isPeer = (path) => path.startsWith(join('test', 'peers'));
const all = [...walk('src'), ...walk('test')].sort();
const files = all
  .filter((path) => (suite === 'peers' ? isPeer(path) : !isPeer(path)))
  .filter((path) => narrow.length === 0 || narrow.some((part) => path.includes(part)));
if (files.length === 0) {
  console.error(`no test file of suite '${suite}' matches ${narrow.join(' ')}`);
  process.exit(1);
}
/** Peer tests are many, and long, processes' anyway. */
const FILES_A_PROCESS = suite === 'peers' ? 1 : 6;
const concurrency = process.env.TEST_CONCURRENCY ?? '2';
const compiled = await compile();

/** Files of a folder share a process, a few each: to start one and load the engine takes as long as most files' tests. */
function processes(paths) {
  const groups = [];
  for (const path of paths) {
    const last = groups.at(-1);
    if (last && last.length < FILES_A_PROCESS && dirname(last[0]) === dirname(path)) last.push(path);
    else groups.push([path]);
  }
  return groups.map((group) => {
    if (group.length === 1) return group[0];
    const path = group[0].replace(/\.js$/, '.and-others.js');
    writeFileSync(path, group.map((one) => `import ${JSON.stringify(one)};\n`).join(''));
    return path;
  });
}

const args = [
  '--enable-source-maps',
  '--import',
  new URL('assert-messages.mjs', import.meta.url).href,
  '--test',
  `--test-concurrency=${concurrency}`,
  '--test-reporter=spec',
  ...processes(files.map((path) => join(compiled, path.replace(/\.ts$/, '.js')))),
];
const peers = peer === undefined ? [] : ['usr/bin', 'bin', ''].map((part) => resolve(peer, part));
const child = spawn(process.execPath, args, {
  stdio: 'inherit',
  env: { ...process.env, LIVEDISK_COMPILED: compiled, PATH: [...peers, process.env.PATH].join(':') },
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal));
child.on('exit', (code, signal) => process.exit(code ?? (signal ? 1 : 0)));
