import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { before, test } from 'node:test';

/** The package as a user has it: packed, and installed in a project of their own. */

const ROOT = resolve(import.meta.dirname, '../..');
const isBuilt = existsSync(join(ROOT, 'dist/types/index.d.ts'));
const skip = isBuilt ? false : 'not built: dist/ (npm run build)';

let project = '';

function run(command: string, args: readonly string[], cwd: string): string {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8' });
  assert.equal(result.status, 0, `${command} ${args.join(' ')}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

before(
  () => {
    if (!isBuilt) return;
    project = mkdtempSync(join(tmpdir(), 'livedisk-project-'));
    process.on('exit', () => rmSync(project, { recursive: true }));
    const modules = join(project, 'node_modules');
    mkdirSync(join(modules, 'livedisk'), { recursive: true });
    const packed = run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', project], ROOT);
    run('tar', ['-xf', packed.trim(), '-C', join(modules, 'livedisk'), '--strip-components=1'], project);
    // What npm would install from the registry.
    mkdirSync(join(modules, '@types'));
    for (const name of ['koffi', '@koromix', 'zstddec', 'typescript', '@types/node', 'undici-types']) {
      const from = join(ROOT, 'node_modules', name);
      if (existsSync(from)) symlinkSync(from, join(modules, name));
    }
    writeFileSync(join(project, 'package.json'), '{ "type": "module" }\n');
  },
  { timeout: 60_000 },
);

test('each entry of the package can be imported', { skip }, () => {
  const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { exports: object };
  const names = Object.keys(exports).map((path) => path.replace('.', 'livedisk'));
  assert.deepEqual(names, ['livedisk', 'livedisk/block', 'livedisk/codec', 'livedisk/nbd', 'livedisk/qmp']);
  for (const name of names) {
    const script = `console.log(Object.keys(await import('${name}')).join())`;
    assert.notEqual(run(process.execPath, ['--input-type=module', '-e', script], project).trim(), '');
  }
});

/** A getter in between would be called for each use of a name, in each request. */
test("the program's chunks have one another's names as plain values", { skip }, () => {
  const folder = join(project, 'node_modules/livedisk/dist/program');
  const script = `
    const chunks = require('fs').readdirSync('.').filter((name) => /^chunk-.*[.]js$/.test(name));
    const names = chunks.flatMap((name) => Object.entries(Object.getOwnPropertyDescriptors(require('./' + name))));
    console.log(JSON.stringify([names.length > 100, names.filter(([, value]) => value.get).map(([name]) => name)]));`;
  assert.equal(run(process.execPath, ['-e', script], folder).trim(), '[true,[]]');
});

interface Example {
  file: string;
  code: string;
  output: string;
}

/** Each example of the manual that has a file name, and what the manual shows that it prints. */
function examples(): Example[] {
  const manual = readFileSync(join(ROOT, 'docs/LIBRARY.md'), 'utf8');
  const found = [...manual.matchAll(/```(?:ts|js) (\S+)\n([^]*?)```\n\n```text\n([^]*?)```/g)];
  const codeBlocks = [...manual.matchAll(/```(?:ts|js)/g)];
  assert.equal(found.length, codeBlocks.length, 'an example without a name or without its output');
  return found.map(([, file = '', code = '', output = '']) => ({ file, code, output }));
}

/** A compiler that reads no types by itself, as TypeScript since 6.0: the package's name those that they need. */
const COMPILE = [
  ...['--strict', '--exactOptionalPropertyTypes', '--target', 'es2022', '--module', 'nodenext'],
  ...['--lib', 'es2022,esnext.disposable'],
];

/** All of them beside each other, the TypeScript ones type-checked and compiled in one run. */
let written: string | undefined;
function writeExamples(): string {
  if (written !== undefined) return written;
  const folder = join(project, 'examples');
  mkdirSync(folder);
  for (const { file, code } of examples()) writeFileSync(join(folder, file), code);
  const typed = examples().flatMap(({ file }) => (file.endsWith('.ts') ? [file] : []));
  run(process.execPath, [join(project, 'node_modules/typescript/bin/tsc'), ...COMPILE, ...typed], folder);
  written = folder;
  return folder;
}

for (const { file, output } of examples())
  test(`the library manual's ${file} does what the manual says`, { skip }, () => {
    const program = join(writeExamples(), file.replace(/\.ts$/, '.js'));
    const folder = mkdtempSync(join(project, 'run-'));
    assert.equal(run(process.execPath, [program], folder), output);
  });
