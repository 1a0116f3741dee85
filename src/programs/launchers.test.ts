import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { launchersMain } from './launchers.js';

const PROGRAMS = ['qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-storage-daemon', 'qemu-system-x86_64'];

interface Run {
  status: number;
  printed: string;
  error: string;
}

/** A folder, and a program in it that prints its arguments. */
function setUp(
  context: TestContext,
  subcommands = ['demo', 'run', 'storage-daemon', 'img', 'io', 'nbd'],
): { folder: string; run: (...args: string[]) => Promise<Run> } {
  const folder = mkdtempSync(join(tmpdir(), "livedisk launcher's "));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  const programPath = join(folder, "it's the program.cjs");
  writeFileSync(programPath, 'console.log(JSON.stringify(process.argv.slice(2)));\n');
  const run = async (...args: string[]): Promise<Run> => {
    let [printed, error] = ['', ''];
    const status = await launchersMain(args, subcommands, {
      runtimePath: process.execPath,
      programPath,
      print: (text) => void (printed += text),
      printError: (text) => void (error += text),
    });
    return { status, printed, error };
  };
  return { folder, run };
}

test('scripts start the program with the subcommand and all arguments', async (context) => {
  const { folder, run } = setUp(context);
  const bin = join(folder, 'new', 'bin');
  const { status, printed, error } = await run(bin);
  assert.deepEqual([status, error], [0, '']);
  assert.deepEqual(readdirSync(bin).sort(), PROGRAMS);
  const subcommands = ['img', 'io', 'nbd', 'storage-daemon', 'run'];
  for (const [i, program] of PROGRAMS.entries()) {
    const result = spawnSync(join(bin, program), ['a b', '', '$x', "'"], { encoding: 'utf8' });
    assert.equal(result.stderr, '');
    assert.deepEqual(JSON.parse(result.stdout), ['--as', program, subcommands[i], 'a b', '', '$x', "'"]);
    assert.match(printed, new RegExp(`/${program}\n`));
  }
  // The line that it says to use works.
  const path = /^ {2}(PATH=.*)$/m.exec(printed)?.[1] ?? '';
  const found = spawnSync('/bin/sh', ['-c', `${path}; command -v qemu-img`], { encoding: 'utf8' });
  assert.equal(found.stdout, `${join(bin, 'qemu-img')}\n`);
});

test('its own scripts are written anew, other files are left alone', async (context) => {
  const { folder, run } = setUp(context);
  const bin = join(folder, 'bin');
  assert.equal((await run(bin)).status, 0);
  assert.equal((await run(bin)).status, 0);
  const image = join(bin, 'qemu-img');
  writeFileSync(image, '#!/bin/sh\nexec something else\n');
  rmSync(join(bin, 'qemu-io'));
  const { status, printed, error } = await run(bin);
  assert.deepEqual([status, printed], [1, '']);
  assert.equal(
    error,
    `livedisk launchers: not written by livedisk, so left alone (--force replaces): ${image}\n`,
  );
  assert.match(readFileSync(image, 'utf8'), /something else/);
  assert.equal(existsSync(join(bin, 'qemu-io')), false, 'all or nothing');
  assert.equal((await run(bin, '--force')).status, 0);
  assert.deepEqual(readdirSync(bin).sort(), PROGRAMS);
  assert.match(readFileSync(image, 'utf8'), /livedisk in the place of qemu-img/);
  assert.equal(statSync(image).mode % 0o1000, 0o755);
});

test('what the program does not stand in for gets no script', async (context) => {
  const { folder, run } = setUp(context, ['run', 'io']);
  assert.equal((await run(join(folder, 'bin'))).status, 0);
  assert.deepEqual(readdirSync(join(folder, 'bin')).sort(), ['qemu-io', 'qemu-system-x86_64']);
});

test('links are not followed', async (context) => {
  const { folder, run } = setUp(context);
  const target = join(folder, 'target');
  writeFileSync(target, '#!/bin/sh\n');
  const bin = join(folder, 'bin');
  mkdirSync(bin);
  symlinkSync(target, join(bin, 'qemu-io'));
  assert.equal((await run(bin)).status, 1);
  assert.equal((await run(bin, '--force')).status, 0);
  assert.equal(readFileSync(target, 'utf8'), '#!/bin/sh\n');
  assert.equal(lstatSync(join(bin, 'qemu-io')).isFile(), true);
});

test('mistakes', async (context) => {
  const { folder, run } = setUp(context);
  assert.match((await run()).error, /one FOLDER is needed\nusage:/);
  assert.match((await run('a', 'b')).error, /one FOLDER is needed/);
  assert.match((await run('a', '--foo')).error, /unknown option '--foo'/);
  assert.deepEqual((await run('--help')).status, 0);
  const file = join(folder, 'file');
  writeFileSync(file, '');
  const { status, error } = await run(join(file, 'bin'));
  assert.equal(status, 1);
  assert.match(error, /Not a directory\n$/);
  mkdirSync(join(folder, 'bin', 'qemu-img'), { recursive: true });
  assert.match((await run(join(folder, 'bin'), '--force')).error, /qemu-img: Is a directory\n$/);
  assert.deepEqual(readdirSync(join(folder, 'bin')), ['qemu-img']);
});
