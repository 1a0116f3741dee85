import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
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
    assert.ok(spaceBytes <= DATA_BYTES + 8 * MiB, `${spaceBytes} bytes`);
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
