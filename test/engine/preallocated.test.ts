import assert from 'node:assert/strict';
import { statSync } from 'node:fs';
import { type TestContext, test } from 'node:test';
import { EngineBed, MiB } from './engine-bed.js';

/** A whose clusters from 0 to 4 MiB are all there, but only the second MiB of them, and 4 KiB, in its file. */
async function preallocated(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.image('A');
  await bed.device('A');
  await bed.guest('write -P 7 0 4M');
  await bed.guest('flush');
  const { hostOffset } = await bed.engine.graph.node('A').io.status(0, 4 * MiB);
  assert.ok(hostOffset !== undefined);
  const file = await bed.engine.host.files.open(bed.path('A.qcow2'), { write: true });
  await file.punchHole(hostOffset, 4 * MiB);
  await file.close();
  await bed.guest('write -P 8 1M 1M');
  await bed.guest('write -P 9 3M 4k');
  await bed.guest('read -P 0 0 1M');
  return bed;
}

test('block status of a preallocated image tells what its file has', async (t) => {
  const bed = await preallocated(t);
  const node = bed.engine.graph.node('A');
  const { hostOffset: first = 0 } = await node.io.status(0, 1);
  const found: Array<[number, number, boolean, boolean]> = [];
  for (let at = 0; at < 4 * MiB;) {
    const { lengthBytes, zero, data, hostOffset, depth } = await node.statusThroughChain(at, 4 * MiB - at);
    assert.deepEqual([hostOffset, depth], [first + at, 0]);
    found.push([at, lengthBytes, zero, data]);
    at += lengthBytes;
  }
  assert.deepEqual(found, [
    [0, MiB, true, true],
    [MiB, MiB, false, true],
    [2 * MiB, MiB, true, true],
    [3 * MiB, 4096, false, true],
    [3 * MiB + 4096, MiB - 4096, true, true],
  ]);
});

for (const command of ['blockdev-backup', 'blockdev-mirror']) {
  test(`${command} of a preallocated image copies what its file has`, async (t) => {
    const bed = await preallocated(t);
    await bed.image('T');
    await bed.execute(command, { 'job-id': 'j', device: 'A', target: 'T', sync: 'full' });
    await bed.event(command === 'blockdev-mirror' ? 'BLOCK_JOB_READY' : 'BLOCK_JOB_COMPLETED', 'j');
    if (command === 'blockdev-mirror') {
      await bed.execute('block-job-complete', { device: 'j' });
      await bed.event('BLOCK_JOB_COMPLETED', 'j');
    }
    const allocated = statSync(bed.path('T.qcow2')).blocks * 512;
    assert.ok(allocated < 2 * MiB, `${allocated} bytes allocated`);
    const bytes = Buffer.alloc(4 * MiB);
    await bed.engine.graph.node('T').io.readBuffer(0, bytes);
    const expected = Buffer.alloc(4 * MiB);
    expected.fill(8, MiB, 2 * MiB).fill(9, 3 * MiB, 3 * MiB + 4096);
    assert.equal(Buffer.compare(bytes, expected), 0);
  });
}
