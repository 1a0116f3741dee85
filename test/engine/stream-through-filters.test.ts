import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import type { Json } from '../../src/block/driver.js';
import { fullFilename } from '../../src/block/full-filename.js';
import { EngineBed, MiB } from './engine-bed.js';

const FILTERS: ReadonlyArray<{ driver: string } & { [key: string]: Json }> = [
  { driver: 'throttle', 'throttle-group': 'tg' },
  { driver: 'copy-on-read' },
  { driver: 'compress' },
];

/** [A] <-- [B] <-- [C] <-- (f) <-- [S]; the guest's disk is S. */
async function filterBelow(t: TestContext, filter: { [key: string]: Json }): Promise<EngineBed> {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.execute('device_del', { id: 'virtio0' });
  await bed.event('DEVICE_DELETED', 'virtio0');
  await bed.execute('blockdev-del', { 'node-name': 'A' });
  await bed.execute('object-add', { 'qom-type': 'throttle-group', id: 'tg' });
  const file = { driver: 'file', filename: bed.path('C.qcow2') };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'C', file });
  await bed.engine.addNode({ ...filter, 'node-name': 'f', file: 'C' });
  await bed.device('f');
  await bed.snapshot('f', 'S');
  await bed.guest(`write -P 9 ${7 * MiB} 1M`);
  return bed;
}

async function checkContent(bed: EngineBed): Promise<void> {
  await bed.guest('read -P 0x11 0 1M');
  await bed.guest('read -P 0x21 1M 1M');
  await bed.guest('read -P 0x22 2M 1M');
  await bed.guest('read -P 9 7M 1M');
}

for (const filter of FILTERS) {
  test(`a stream into what ${filter.driver} shows fills the layer below it`, async (t) => {
    const bed = await filterBelow(t, filter);
    await bed.execute('block-stream', { device: 'f', 'job-id': 'j', base: bed.path('A.qcow2') });
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
    const layer = bed.engine.graph.nodes.get('C') ?? assert.fail('no C');
    assert.equal(layer.backingNode()?.filename, bed.path('A.qcow2'));
    await checkContent(bed);
    await bed.execute('block-stream', { device: 'f', 'job-id': 'k' });
    const { len, offset } = await bed.event('BLOCK_JOB_COMPLETED', 'k');
    assert.deepEqual([len, offset], [8 * MiB, 8 * MiB]);
    assert.equal(layer.backingNode(), undefined);
    await checkContent(bed);
  });
}

test('an overlay of a filter has its plain name: its header says how the filter is opened', async (t) => {
  const bed = await filterBelow(t, { driver: 'throttle', 'throttle-group': 'tg' });
  assert.equal(fullFilename(bed.engine.graph.node('S')), bed.path('S.qcow2'));
});

test('what a filter shows is no base of a stream into the filter', async (t) => {
  const bed = await filterBelow(t, { driver: 'copy-on-read' });
  const refused = await bed.refusal('block-stream', { device: 'f', 'job-id': 'j', 'base-node': 'C' });
  assert.equal(refused, "'C' is not in the backing chain of 'f'");
});
