import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const PIECE_BYTES = 65536;

/** Drive d0: an overlay of twice the length of its backing file. */
async function bedWithDrive(context: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(context);
  const { opener } = bed.engine;
  const [base, top] = [bed.path('base.qcow2'), bed.path('top.qcow2')];
  await createImage(opener, base, 'qcow2', { sizeBytes: DISK_BYTES });
  await createImage(opener, top, 'qcow2', {
    sizeBytes: 2 * DISK_BYTES,
    backingFile: base,
    backingFormat: 'qcow2',
  });
  assert.match(await monitor(bed, `drive_add 0 if=none,id=d0,file=${top}`), /^OK/);
  return bed;
}

async function monitor(bed: EngineBed, line: string): Promise<string> {
  return (await bed.execute('human-monitor-command', { 'command-line': line })) as string;
}

async function io(bed: EngineBed, command: string): Promise<void> {
  const before = bed.printed.length;
  assert.equal(await monitor(bed, `qemu-io d0 "${command}"`), '');
  assert.doesNotMatch(bed.printed.slice(before).join('\n'), /failed|rror/, command);
}

test("the human monitor's commit brings a disk's changes into its backing file and empties the image", async (t) => {
  const bed = await bedWithDrive(t);
  await io(bed, 'write -P 1 0 1M');
  await io(bed, `write -P 2 ${2 * DISK_BYTES - MiB} 1M`);
  assert.equal(await monitor(bed, 'commit d0'), '');
  const root = bed.engine.drives.get('d0')?.backend.root?.node;
  const base = root?.backingNode();
  assert.ok(root && base, 'the image is where it was');
  assert.equal(base.lengthBytes, 2 * DISK_BYTES);
  const own = await root.io.status(0, 2 * DISK_BYTES);
  assert.deepEqual([own.allocated, own.lengthBytes], [false, 2 * DISK_BYTES]);
  await io(bed, 'read -P 1 0 1M');
  await io(bed, 'read -P 0 1M 1M');
  await io(bed, `read -P 2 ${2 * DISK_BYTES - MiB} 1M`);
  assert.equal(base.readOnly, true, 'nobody may write to it any more');
  assert.deepEqual(bed.events, [], 'no job is told of');
  assert.deepEqual(await bed.execute('query-jobs'), []);
  // Once more, with all that there is.
  await io(bed, 'write -P 3 1M 1M');
  assert.equal(await monitor(bed, 'commit all'), '');
  await io(bed, 'read -P 3 1M 1M');
});

test('what a guest writes while its disk is committed is not lost', async (t) => {
  const bed = await bedWithDrive(t);
  await io(bed, `write -P 9 0 ${DISK_BYTES}`);
  const backend = bed.engine.drives.get('d0')?.backend;
  assert.ok(backend);
  const last = new Map<number, number>();
  let isOver = false;
  const write = async (): Promise<void> => {
    for (let round = 1; !isOver; round++) {
      const offset = ((round * 37) % (DISK_BYTES / PIECE_BYTES)) * PIECE_BYTES;
      const value = round % 251;
      await backend.write(offset, Buffer.alloc(PIECE_BYTES, value));
      last.set(offset, value);
      await bed.engine.host.clock.macrotask();
    }
  };
  const writer = write();
  assert.equal(await monitor(bed, 'commit d0'), '');
  isOver = true;
  await writer;
  const bytes = Buffer.alloc(PIECE_BYTES);
  for (let offset = 0; offset < DISK_BYTES; offset += PIECE_BYTES) {
    await backend.read(offset, bytes);
    assert.ok(bytes.equals(Buffer.alloc(PIECE_BYTES, last.get(offset) ?? 9)), `at ${offset}`);
  }
});

test('the human monitor says why a disk is not committed', async (t) => {
  const bed = await bedWithDrive(t);
  await createImage(bed.engine.opener, bed.path('alone.qcow2'), 'qcow2', { sizeBytes: MiB });
  await monitor(bed, `drive_add 0 if=none,id=d1,file=${bed.path('alone.qcow2')}`);
  assert.equal(await monitor(bed, 'commit d1'), "'commit' error for 'd1': Operation not supported\r\n");
  assert.equal(await monitor(bed, 'commit none'), "Device 'none' not found\r\n");
  const mirror = { device: 'd0', target: bed.path('copy.qcow2'), format: 'qcow2', sync: 'full' };
  await bed.execute('drive-mirror', mirror);
  assert.equal(await monitor(bed, 'commit d0'), "'commit' error for 'd0': Device or resource busy\r\n");
  await bed.event('BLOCK_JOB_READY', 'd0');
});
