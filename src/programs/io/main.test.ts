import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { DriverRegistry } from '../../block/registry.js';
import { createImage } from '../../block/create.js';
import { runLivedisk, scratch } from '../../../test/kit/program.js';
import { toolAnswer } from '../../../test/kit/tool-answer.js';
import { ioMain } from './main.js';

const io = (...args: string[]): ReturnType<typeof toolAnswer> =>
  toolAnswer((out) => ioMain(args, out, createRealHost(), allDrivers));

const run = (...commands: string[]): ReturnType<typeof toolAnswer> =>
  io(...commands.flatMap((command) => ['-c', command]));

/** Paths of a qcow2 image and an overlay of it. */
async function images(t: TestContext): Promise<{ base: string; overlay: string }> {
  const folder = scratch(t);
  const opener = new Opener(new Graph(createRealHost()), new DriverRegistry(allDrivers));
  const [base, overlay] = [`${folder}/base.qcow2`, `${folder}/overlay.qcow2`];
  await createImage(opener, base, 'qcow2', { sizeBytes: 2 ** 20 });
  const backing = { backingFile: base, backingFormat: 'qcow2' };
  await createImage(opener, overlay, 'qcow2', { sizeBytes: 2 ** 20, ...backing });
  return { base, overlay };
}

const NO_FILE = "no file open, try 'help open'\n";

test('help needs no image, everything else does', async () => {
  const all = await run('help');
  assert.equal(all.code, 0);
  assert.match(all.stdout, /^abort/);
  assert.match((await run('help read')).stdout, /^read \[/);
  for (const commands of [['length'], ['help', 'length'], ['close'], ['reopen'], ['write 0 1']]) {
    const { code, stderr } = await run(...commands);
    assert.deepEqual([code, stderr], [1, NO_FILE]);
  }
  assert.deepEqual(await io(), { code: 0, stdout: 'qemu-io> ', stderr: '' });
});

test('disks are opened and closed by command', async (t) => {
  const { base, overlay } = await images(t);
  const answer = await run(
    ...[
      `open -o driver=qcow2,file.filename=${base}`,
      'write -q -P 7 0 64k',
      `open ${overlay}`,
      'close',
      'length',
    ],
    ...[`open -r ${overlay}`, 'read -q -P 7 0 64k', 'write 0 1k', 'length'],
  );
  assert.deepEqual(answer, {
    code: 1,
    stdout: '1 MiB\n',
    stderr: `qemu-io: file open already, try 'help close'\n${NO_FILE}qemu-io: Block node is read-only\n`,
  });
  const both = await io('--image-opts', '-c', `open driver=raw,file.filename=${base}`, '-c', 'length');
  assert.equal(both.code, 0);
});

test('what cannot be opened is told, and the next may be', async (t) => {
  const { base } = await images(t);
  const missing = `${base}.not`;
  for (const [words, message] of [
    ['-x a', "open: invalid option -- 'x'"],
    ['-t bad a', 'qemu-io: Invalid cache option: bad'],
    ['-d bad a', 'qemu-io: Invalid discard option: bad'],
    ['-s a', "qemu-io: can't open device a: Could not open 'a': No such file or directory"],
    [
      `-U ${base}`,
      `qemu-io: can't open device ${base}: force-share=on can only be used with read-only images`,
    ],
    [
      missing,
      `qemu-io: can't open device ${missing}: Could not open '${missing}': No such file or directory`,
    ],
    ['-o driver=nope x', "qemu-io: can't open device x: Unknown driver 'nope'"],
    [
      `-o bogus=1 ${base}`,
      `qemu-io: can't open device ${base}: Block format 'qcow2' does not support the option 'bogus'`,
    ],
  ] as const) {
    const { code, stdout, stderr } = await run(`open ${words}`, `open ${base}`, 'length');
    assert.equal(stderr, `${message}\n`);
    assert.ok(stdout.endsWith('1 MiB\n'), stdout);
    assert.equal(code, 1);
  }
});

test('a disk is reopened with what is said, and stays as it was in everything else', async (t) => {
  const { overlay } = await images(t);
  const answer = await run(
    ...[`open ${overlay}`, 'reopen -r', 'write 0 1k', 'reopen -w', 'write -q 0 1k', 'reopen -c writethrough'],
    ...['reopen -o backing.detect-zeroes=on', 'write -q 0 1k', 'reopen -o read-only=on', 'reopen -r -w'],
    ...[
      'reopen -o bogus=1',
      'reopen -o backing.bogus=1',
      'reopen -o file.locking=off',
      'reopen -o driver=raw',
    ],
    ...['reopen -r -o read-only=on', 'reopen -c none -o cache.direct=off', 'reopen -c bad', 'write -q 0 1k'],
  );
  assert.equal(answer.code, 1);
  assert.deepEqual(answer.stderr.replace(/#block\d+/, '#block').split('\n'), [
    'qemu-io: Block node is read-only',
    "qemu-io: Read-only block node '#block' cannot support read-write users",
    'qemu-io: Only one -r/-w option may be given',
    "qemu-io: Cannot change the option 'bogus'",
    "qemu-io: Cannot change the option 'bogus'",
    "qemu-io: Cannot change the option 'locking'",
    "qemu-io: Cannot change the option 'driver'",
    "qemu-io: Cannot set both -r/-w and 'read-only'",
    'qemu-io: Cannot set both -c and the cache options',
    'qemu-io: Invalid cache option: bad',
    '',
  ]);
  assert.equal(answer.stdout, '');
});

test('a file name beside options is the file, or the child of a filter of files', async (t) => {
  const { base } = await images(t);
  const raw = `${base}.raw`;
  writeFileSync(raw, Buffer.alloc(2 ** 20));
  await run(`open ${base}`, 'write -q -P 0 0 64k');
  for (const [words, expected] of [
    [`-o driver=raw,file.driver=blkverify,file.raw.filename=${raw} ${base}`, ''],
    [`-o driver=blkverify,raw.filename=${raw} ${base}`, ''],
    [`-o file.driver=blkdebug,file.inject-error.event=l2_load ${base}`, 'read failed: Input/output error\n'],
    [`-o driver=blkdebug,inject-error.event=none ${base}`, 'read failed: Input/output error\n'],
    [`-o driver=qcow2,file.driver=file,file.locking=off ${base}`, ''],
  ] as const)
    assert.deepEqual(await run(`open ${words}`, 'read -q 0 512'), {
      code: expected === '' ? 0 : 1,
      stdout: expected,
      stderr: '',
    });
  for (const [words, message] of [
    [`driver=qcow2,file.filename=${raw}`, "Can't specify 'file' and 'filename' options at the same time"],
    [
      'driver=blkdebug,inject-error.event=none,inject-error.0.event=none',
      "Unknown option '0.event' for [inject-error]",
    ],
  ] as const) {
    const { stderr } = await run(`open -o ${words} ${base}`);
    assert.equal(stderr, `qemu-io: can't open device ${base}: ${message}\n`);
  }
});

test('what is said to be written is in the image, also when the program is killed', async (t) => {
  const { base } = await images(t);
  const { stdout } = runLivedisk('io', '-c', 'write -P 7 0 64k', '-c', 'sigraise 9', base);
  assert.match(stdout, /^wrote/);
  assert.equal((await io('-r', '-c', 'read -q -P 7 0 64k', base)).code, 0);
});
