import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { allDrivers } from '../../src/drivers/index.js';
import { imgMain } from '../../src/programs/img/main.js';
import { ioMain } from '../../src/programs/io/main.js';
import { toolAnswer } from '../kit/tool-answer.js';
import { EngineBed, MiB } from './engine-bed.js';

/** A target that is known to be zero is found so by itself, and holes stay holes. */

const TiB = 1024 * 1024 * MiB;
const WRITES = 32;
const WRITE_BYTES = MiB / 2;
const DATA_BYTES = WRITES * WRITE_BYTES;

const CASES = [
  { command: 'blockdev-mirror', format: 'raw', sizeBytes: TiB / 16, more: {} },
  { command: 'blockdev-mirror', format: 'raw', sizeBytes: TiB / 16, more: { 'x-persist': true } },
  { command: 'blockdev-backup', format: 'raw', sizeBytes: TiB, more: {} },
  { command: 'blockdev-backup', format: 'raw', sizeBytes: TiB / 16, more: { 'x-persist': true } },
  { command: 'blockdev-backup', format: 'qcow2', sizeBytes: TiB / 16, more: {} },
  { command: 'blockdev-mirror', format: 'qcow2', sizeBytes: 256 * MiB, preallocation: 'metadata', more: {} },
  { command: 'blockdev-backup', format: 'qcow2', sizeBytes: 128 * MiB, preallocation: 'falloc', more: {} },
  { command: 'blockdev-mirror', format: 'raw', sizeBytes: 128 * MiB, preallocation: 'falloc', more: {} },
  { command: 'blockdev-backup', format: 'raw', sizeBytes: 128 * MiB, preallocation: 'falloc', more: {} },
] as const;

for (const { command, format, sizeBytes, more, ...rest } of CASES) {
  const preallocation = 'preallocation' in rest ? rest.preallocation : undefined;
  const persists = 'x-persist' in more;
  const how = `${preallocation ?? 'new'} ${format}${persists ? ' with a journal' : ''}`;
  test(`${command} to a target that is ${how} moves what the disk holds, and not more`, async (t) => {
    const bed = new EngineBed(t);
    const source = { driver: 'qcow2', file: bed.path('s'), size: sizeBytes };
    await create(bed, source);
    const options = preallocation === undefined ? {} : { preallocation };
    await create(bed, { driver: format, file: bed.path('t'), size: sizeBytes, ...options });
    for (const [name, driver] of [
      ['s', 'qcow2'],
      ['t', format],
    ] as const)
      await bed.engine.addNode({
        driver,
        'node-name': name,
        file: { driver: 'file', filename: bed.path(name) },
      });
    await bed.device('s');
    for (let i = 0; i < WRITES; i++) await bed.guest(`write -P 7 ${(sizeBytes / WRITES) * i} ${WRITE_BYTES}`);
    const persist = persists ? { 'x-persist': bed.path('journal') } : {};
    const ends = { device: 's', target: 't', sync: 'full' };
    await bed.execute(command, { 'job-id': 'j', ...ends, 'auto-dismiss': false, ...persist });
    const job = bed.engine.jobs.find('j');
    assert.ok(job);
    if (command === 'blockdev-mirror') {
      await bed.event('BLOCK_JOB_READY', 'j');
      await bed.execute('block-job-cancel', { device: 'j' });
    }
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.equal(job.progress().dataBytes, DATA_BYTES);
    const spaceBytes = statSync(bed.path('t')).blocks * 512;
    // What was taken beforehand stays.
    const takenBytes = preallocation === 'falloc' ? sizeBytes : DATA_BYTES;
    assert.ok(spaceBytes >= takenBytes && spaceBytes <= takenBytes + 8 * MiB, `${spaceBytes} bytes`);
  });
}

/** An empty image. */
async function create(
  bed: EngineBed,
  {
    driver,
    file,
    size,
    preallocation,
  }: { driver: string; file: string; size: number; preallocation?: string },
): Promise<void> {
  const options = preallocation === undefined ? {} : { preallocation };
  await createImage(bed.engine.opener, file, driver, { sizeBytes: size, options });
}

/** A disk with a MiB at its beginning, in its middle and at its end. */
async function sparse(bed: EngineBed, name: string, sizeBytes: number): Promise<void> {
  await create(bed, { driver: 'qcow2', file: bed.path(name), size: sizeBytes });
  const writes = [0, sizeBytes / 2, sizeBytes - MiB].flatMap((at) => ['-c', `write -P 7 ${at} 1M`]);
  await run(bed, 'io', ...writes, bed.path(name));
}

async function run(bed: EngineBed, tool: 'img' | 'io', ...words: string[]): Promise<string> {
  const main = tool === 'img' ? imgMain : ioMain;
  const answer = await toolAnswer((out) => main(words, out, bed.engine.host, allDrivers));
  assert.equal(answer.code, 0, `${words.join(' ')}: ${answer.stderr}`);
  return answer.stdout;
}

const spaceOf = (path: string): number => statSync(path).blocks * 512;

for (const format of ['raw', 'qcow2', 'vhdx', 'qed'])
  test(`convert of a disk with little data to an image that is there writes what it holds, to ${format}`, async (t) => {
    const bed = new EngineBed(t);
    const sizeBytes = format === 'raw' ? TiB : TiB / 32;
    await sparse(bed, 's', sizeBytes);
    await create(bed, { driver: format, file: bed.path('t'), size: sizeBytes });
    const before = spaceOf(bed.path('t'));
    await run(bed, 'img', 'convert', '-n', '-O', format, bed.path('s'), bed.path('t'));
    const grown = spaceOf(bed.path('t')) - before;
    assert.ok(grown >= 2 * MiB && grown <= 64 * MiB, `${grown} bytes`);
    const [first] = JSON.parse(await run(bed, 'img', 'map', '--output=json', bed.path('t'))) as Array<{
      length: number;
    }>;
    assert.ok(first && first.length < 64 * MiB);
    await run(bed, 'img', 'compare', bed.path('s'), bed.path('t'));
  });

test("zeroes that convert makes in an image that is there are the image's own, not those of what is below it", async (t) => {
  const bed = new EngineBed(t);
  const size = 4 * MiB;
  for (const name of ['s', 'base']) await create(bed, { driver: 'qcow2', file: bed.path(name), size });
  const map = async (): Promise<unknown> => {
    const lines = JSON.parse(await run(bed, 'img', 'map', '--output=json', bed.path('t'))) as object[];
    return lines.map((line) => ({ ...line, offset: undefined }));
  };
  const whole = { start: 0, length: size, depth: 0, offset: undefined };
  const below = ['-F', 'qcow2', '-b', bed.path('base')];
  for (const [compat, backing, found] of [
    ['1.1', [], { present: true, zero: true, data: false }],
    ['0.10', [], { present: false, zero: true, data: false }],
    ['1.1', below, { present: true, zero: true, data: false }],
    ['0.10', below, { present: true, zero: false, data: true }],
  ] as const) {
    const words = ['-q', '-f', 'qcow2', '-o', `compat=${compat}`, ...backing, bed.path('t'), `${size}`];
    await run(bed, 'img', 'create', ...words);
    await run(bed, 'img', 'convert', '-n', '-O', 'qcow2', bed.path('s'), bed.path('t'));
    assert.deepEqual(await map(), [{ ...whole, ...found }], `${compat} ${backing.join(' ')}`);
  }
});

test('a whole backup into an overlay of the disk itself holds zeroes that the guest overwrites later', async (t) => {
  const bed = new EngineBed(t);
  const size = 4 * MiB;
  for (const name of ['s', 't']) await create(bed, { driver: 'qcow2', file: bed.path(name), size });
  const node = (name: string, more = {}): Promise<unknown> => {
    const file = { driver: 'file', filename: bed.path(name) };
    return bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file, ...more });
  };
  await node('s');
  await node('t', { backing: 's' });
  await bed.execute('blockdev-backup', { 'job-id': 'j', device: 's', target: 't', sync: 'full' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  for (const line of ['qemu-io s "write -P 7 0 1M"', 'qemu-io t "read -P 0 0 1M"'])
    await bed.execute('human-monitor-command', { 'command-line': line });
  assert.equal(bed.printed.filter((text) => /failed/.test(text)).length, 0, bed.printed.join('\n'));
});

const COPIES = [
  ['blockdev-mirror', { target: 't', sync: 'full' }],
  ['blockdev-mirror', { target: 't', sync: 'full', 'copy-mode': 'write-blocking' }],
  ['blockdev-backup', { target: 't', sync: 'full' }],
  ['block-commit', {}],
] as const;

for (const [command, to] of COPIES)
  for (const compat of ['0.10', '1.1'])
    test(`${command} ${JSON.stringify(to)}: zeroes hide the backing file that the target names, and was opened without (${compat})`, async (t) => {
      const bed = new EngineBed(t);
      const [size, isCommit] = [4 * MiB, command === 'block-commit'];
      await run(bed, 'img', 'create', '-q', '-f', 'qcow2', bed.path('below'), `${size}`);
      await run(bed, 'io', '-c', `write -P 9 0 ${size}`, bed.path('below'));
      const over = ['-b', bed.path('below'), '-F', 'qcow2'];
      await run(bed, 'img', 'create', '-q', '-f', 'qcow2', '-o', `compat=${compat}`, ...over, bed.path('t'));
      await create(bed, { driver: 'qcow2', file: bed.path('s'), size });
      for (const [name, backing] of [
        ['t', null],
        ['s', isCommit ? 't' : null],
      ] as const) {
        const file = { driver: 'file', filename: bed.path(name) };
        await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, backing, file });
      }
      await bed.device('s');
      await bed.guest('write -P 7 1M 64k');
      await bed.guest('write -z 2M 1M');
      await bed.execute(command, { 'job-id': 'j', device: 's', ...to });
      if (command !== 'blockdev-backup') {
        await bed.event('BLOCK_JOB_READY', 'j');
        await bed.guest('write -z 0 512k');
        await bed.execute('job-complete', { id: 'j' });
      }
      await bed.event('BLOCK_JOB_COMPLETED', 'j');
      await bed.engine.close();
      // A hole is the disk's, too, unless another layer goes on below it.
      const zeroes = isCommit ? ['0 512k', '2M 1M'] : ['0 1M', '2M 2M'];
      const reads = ['-P 7 1M 64k', ...zeroes.map((where) => `-P 0 ${where}`)];
      const commands = reads.flatMap((read) => ['-c', `read ${read}`]);
      assert.doesNotMatch(await run(bed, 'io', '-r', ...commands, bed.path('t')), /failed/);
    });

test('a mirror of one layer has its zeroes in the target before that gets its backing file, in every format', async (t) => {
  for (const how of [
    ['qcow2', 'compat=0.10'] as const,
    ['qcow2', 'compat=1.1'] as const,
    ['qed', ''] as const,
  ])
    for (const mode of ['background', 'write-blocking']) {
      const bed = new EngineBed(t);
      const [format, options] = how;
      const over = ['-q', '-b', bed.path('b'), '-F', 'qcow2'];
      await run(bed, 'img', 'create', '-q', '-f', 'qcow2', bed.path('b'), '4M');
      await run(bed, 'io', '-f', 'qcow2', '-c', 'write -P 9 0 4M', bed.path('b'));
      await run(bed, 'img', 'create', '-f', 'qcow2', ...over, bed.path('s'));
      await run(bed, 'io', '-f', 'qcow2', '-c', 'write -z 0 1M', bed.path('s'));
      const chosen = options === '' ? [] : ['-o', options];
      await run(bed, 'img', 'create', '-f', format, ...over, ...chosen, bed.path('t'));
      const file = { driver: 'file', filename: bed.path('s') };
      await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 's', file });
      await bed.device('s');
      await bed.execute('drive-mirror', {
        ...{ 'job-id': 'j', device: 's', target: bed.path('t'), format, mode: 'existing', 'node-name': 't' },
        ...{ sync: 'top', 'copy-mode': mode },
      });
      await bed.event('BLOCK_JOB_READY', 'j');
      await bed.guest('write -z 1M 1M');
      await bed.guest('write -z 2M 512');
      await bed.execute('job-complete', { id: 'j' });
      await bed.event('BLOCK_JOB_COMPLETED', 'j');
      for (const read of ['-P 0 0 2M', '-P 0 2M 512', '-P 9 3M 1M'])
        await bed.execute('human-monitor-command', { 'command-line': `qemu-io t "read ${read}"` });
      const wrong = bed.printed.filter((text) => /failed/.test(text));
      assert.deepEqual(wrong, [], `${format} ${options}, ${mode}`);
    }
});

test('convert leaves the space that an image has taken beforehand where the disk has holes', async (t) => {
  const bed = new EngineBed(t);
  await sparse(bed, 's', 64 * MiB);
  await create(bed, { driver: 'raw', file: bed.path('t'), size: 64 * MiB, preallocation: 'falloc' });
  await run(bed, 'img', 'convert', '-n', '-O', 'raw', bed.path('s'), bed.path('t'));
  assert.ok(spaceOf(bed.path('t')) >= 64 * MiB);
  await run(bed, 'img', 'compare', bed.path('s'), bed.path('t'));
});

test('a commit and a stream of a TiB with little data move that', async (t) => {
  for (const command of ['block-commit', 'block-stream']) {
    const bed = new EngineBed(t);
    await sparse(bed, 'base', TiB);
    const opened = { driver: 'qcow2', file: { driver: 'file', filename: bed.path('base') } };
    await bed.engine.addNode({ ...opened, 'node-name': 'base' });
    await bed.device('base');
    await bed.snapshot('base', 'top');
    await bed.guest(`write -P 9 ${TiB / 4} 1M`);
    await bed.guest(`write -z -u ${TiB / 2} 64k`);
    await bed.execute(command, { 'job-id': 'j', device: 'top', 'auto-dismiss': false });
    const job = bed.engine.jobs.find('j');
    assert.ok(job);
    if (command === 'block-commit') {
      await bed.event('BLOCK_JOB_READY', 'j');
      await bed.execute('job-complete', { id: 'j' });
    }
    await job.concluded;
    assert.equal(job.error, undefined);
    assert.ok(job.progress().dataBytes <= 4 * MiB, `${command}: ${job.progress().dataBytes} bytes`);
  }
});
