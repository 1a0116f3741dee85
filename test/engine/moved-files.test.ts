import assert from 'node:assert/strict';
import {
  existsSync,
  linkSync,
  readFileSync,
  renameSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { addDrive } from '../../src/monitor/drives.js';
import { parseDrive } from '../../src/programs/arguments/drive-options.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** Files whose names lead elsewhere by the time that they are opened again. */

type Format = 'raw' | 'qcow2';

/** Another image of that format, full of 9. */
async function otherImage(t: TestContext, path: string, format: Format): Promise<Buffer> {
  const bed = new EngineBed(t);
  await createImage(bed.engine.opener, path, format, { sizeBytes: DISK_BYTES });
  const file = { driver: 'file', filename: path };
  await bed.execute('blockdev-add', { driver: format, 'node-name': 'other', file });
  await io(bed, 'other', `write -P 9 0 ${DISK_BYTES}`);
  await bed.engine.close();
  return readFileSync(path);
}

async function io(bed: EngineBed, node: string, command: string): Promise<void> {
  const before = bed.printed.length;
  await bed.execute('human-monitor-command', { 'command-line': `qemu-io ${node} "${command}"` });
  assert.doesNotMatch(bed.printed.slice(before).join('\n'), /failed|rror/, command);
}

/** What becomes of the name `image`; the file itself is at `kept` too. The answer: what lies at the name then. */
const CHANGES: {
  [what: string]: (t: TestContext, bed: EngineBed, format: Format) => Promise<Buffer | undefined>;
} = {
  'was moved': async (_, bed) => {
    renameSync(bed.path('image'), bed.path('moved'));
    return undefined;
  },
  'was unlinked': async (_, bed) => {
    unlinkSync(bed.path('image'));
    return undefined;
  },
  'was replaced by another image': async (t, bed, format) => {
    const other = await otherImage(t, bed.path('new'), format);
    renameSync(bed.path('new'), bed.path('image'));
    return other;
  },
  'was a link that leads to another image': async (t, bed, format) => {
    const other = await otherImage(t, bed.path('new'), format);
    symlinkSync('new', bed.path('link'));
    renameSync(bed.path('link'), bed.path('image'));
    return other;
  },
};

/** The disk of a guest in the file `kept`, opened as `image`. */
async function disk(t: TestContext, format: Format, fileOptions: JsonObject): Promise<EngineBed> {
  const bed = new EngineBed(t);
  const filename = bed.path('image');
  await createImage(bed.engine.opener, filename, format, { sizeBytes: DISK_BYTES });
  linkSync(filename, bed.path('kept'));
  const file = { driver: 'file', 'node-name': 'file', filename, ...fileOptions };
  await bed.execute('blockdev-add', { driver: format, 'node-name': 'A', file });
  await bed.device('A');
  await bed.guest('write -P 1 0 4M');
  await bed.guest('write -P 2 1M 1M');
  return bed;
}

async function assertKept(t: TestContext, kept: string, format: Format, checks: string[]): Promise<void> {
  const bed = new EngineBed(t);
  const file = { driver: 'file', filename: kept };
  await bed.execute('blockdev-add', { driver: format, 'node-name': 'kept', file, 'read-only': true });
  for (const check of checks) await io(bed, 'kept', check);
  await bed.engine.close();
}

for (const [what, change] of Object.entries(CHANGES))
  for (const format of ['raw', 'qcow2'] as const)
    for (const isAuto of [false, true]) {
      const how = isAuto ? ', with auto-read-only' : '';
      test(`a ${format} disk whose file ${what} is snapshotted and committed into${how}`, async (t) => {
        const bed = await disk(t, format, { 'auto-read-only': isAuto });
        const other = await change(t, bed, format);
        await bed.snapshot('A', 'B');
        for (const check of ['read -P 1 0 1M', 'read -P 2 1M 1M', 'read -P 1 2M 2M', 'read -P 0 4M 4M'])
          await bed.guest(check);
        await bed.guest('write -P 3 0 512k');
        await bed.execute('block-commit', { 'job-id': 'j', device: 'B' });
        await bed.event('BLOCK_JOB_READY', 'j');
        await bed.execute('block-job-complete', { device: 'j' });
        assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
        assert.deepEqual(await bed.layers(), ['A']);
        await bed.guest('write -P 4 5M 1M');
        const checks = ['read -P 3 0 512k', 'read -P 1 512k 512k', 'read -P 2 1M 1M', 'read -P 4 5M 1M'];
        for (const check of checks) await bed.guest(check);
        await bed.engine.close();
        await assertKept(t, bed.path('kept'), format, checks);
        assert.equal(existsSync(bed.path('image')), other !== undefined);
        if (other) assert.deepEqual(readFileSync(bed.path('image')), other);
      });
    }

test('a file is the same after blockdev-reopen, whatever lies at its path', async (t) => {
  const bed = new EngineBed(t);
  writeFileSync(bed.path('f'), Buffer.alloc(65536, 1));
  const options = { driver: 'file', 'node-name': 'f', filename: bed.path('f') };
  await bed.execute('blockdev-add', options);
  linkSync(bed.path('f'), bed.path('kept'));
  writeFileSync(bed.path('new'), Buffer.alloc(65536, 9));
  renameSync(bed.path('new'), bed.path('f'));
  for (const [i, more] of [{ 'read-only': true }, { 'auto-read-only': true }, {}].entries()) {
    await bed.execute('blockdev-reopen', { options: [{ ...options, ...more }] });
    await io(bed, 'f', 'read -P 1 32k 32k');
    if (i > 0) await io(bed, 'f', `write -P ${i + 1} 0 32k`);
  }
  await bed.engine.close();
  assert.deepEqual(readFileSync(bed.path('f')), Buffer.alloc(65536, 9));
  const kept = Buffer.concat([Buffer.alloc(32768, 3), Buffer.alloc(32768, 1)]);
  assert.deepEqual(readFileSync(bed.path('kept')), kept);
});

test('a drive with snapshot=on is snapshotted and committed into, though its own file has no name', async (t) => {
  const bed = new EngineBed(t);
  const filename = bed.path('disk');
  writeFileSync(filename, Buffer.alloc(DISK_BYTES, 7));
  const before = readFileSync(filename);
  const drive = `if=none,id=d,file=${filename},format=raw,snapshot=on`;
  await addDrive(bed.engine, parseDrive(drive, assert.fail));
  await io(bed, 'd', 'write -P 1 0 64k');
  const overlay = { 'snapshot-file': bed.path('B'), format: 'qcow2' };
  await bed.execute('blockdev-snapshot-sync', { device: 'd', ...overlay });
  await io(bed, 'd', 'write -P 2 64k 64k');
  for (const check of ['read -P 1 0 64k', 'read -P 2 64k 64k', 'read -P 7 128k 64k'])
    await io(bed, 'd', check);
  await bed.execute('block-commit', { 'job-id': 'j', device: 'd', 'base-node': below(bed, 'd') });
  await bed.event('BLOCK_JOB_READY', 'j');
  await bed.execute('block-job-complete', { device: 'j' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
  for (const check of ['read -P 1 0 64k', 'read -P 2 64k 64k', 'read -P 7 128k 64k'])
    await io(bed, 'd', check);
  await bed.engine.close();
  assert.deepEqual(readFileSync(filename), before);
});

function below(bed: EngineBed, drive: string): string {
  const node = bed.engine.drives.get(drive)?.backend.node.backingNode();
  assert.ok(node);
  return node.name;
}

test('what comes back from another process is what lies at its name by then', async (t) => {
  const bed = await disk(t, 'qcow2', { 'auto-read-only': true });
  await bed.execute('stop');
  await bed.execute('blockdev-set-active', { active: false });
  await CHANGES['was replaced by another image']?.(t, bed, 'qcow2');
  const before = readFileSync(bed.path('kept'));
  await bed.execute('blockdev-set-active', { active: true });
  await bed.execute('cont');
  await bed.guest(`read -P 9 0 ${DISK_BYTES}`);
  await bed.guest('write -P 5 6M 1M');
  await bed.snapshot('A', 'B');
  await bed.guest('read -P 5 6M 1M');
  await bed.engine.close();
  assert.deepEqual(readFileSync(bed.path('kept')), before);
  await assertKept(t, bed.path('image'), 'qcow2', ['read -P 9 0 6M', 'read -P 5 6M 1M']);
});
