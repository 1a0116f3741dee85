import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** Formats whose images keep what the disk holds in files of their own. */
const APART = [
  {
    what: 'qcow2 with a data file',
    format: 'qcow2',
    options: (at: string) => ({ 'data-file': `${at}-data` }),
  },
  { what: 'a flat vmdk', format: 'vmdk', options: () => ({ subformat: 'monolithicFlat' }) },
  { what: 'a split vmdk', format: 'vmdk', options: () => ({ subformat: 'twoGbMaxExtentSparse' }) },
] as const;

/** A <-- B <-- C, the last one the guest's disk. */
async function chainOn(t: TestContext, { format, options }: (typeof APART)[number]): Promise<EngineBed> {
  const bed = new EngineBed(t);
  const filename = bed.path('A');
  await createImage(bed.engine.opener, filename, format, {
    sizeBytes: DISK_BYTES,
    options: options(filename),
  });
  await bed.engine.addNode({ driver: format, 'node-name': 'A', file: { driver: 'file', filename } });
  await bed.device('A');
  await bed.guest('write -P 1 0 4M');
  for (const [i, name] of ['B', 'C'].entries()) {
    await bed.snapshot(i === 0 ? 'A' : 'B', name);
    await bed.guest(`write -P ${i + 2} ${i + 1}M 1M`);
  }
  return bed;
}

/** Drivers of the nodes of A that are open for writing. */
async function writableOf(bed: EngineBed): Promise<string[]> {
  const query = await bed.execute('query-named-block-nodes', { flat: true });
  const nodes = query as Array<{ file: string; drv: string; ro: boolean }>;
  return nodes.filter(({ file, ro }) => !ro && /\/A[^/]*$/.test(file)).map(({ drv }) => drv);
}

async function commitActive(bed: EngineBed): Promise<void> {
  await bed.execute('block-commit', { 'job-id': 'active', device: 'C' });
  await bed.event('BLOCK_JOB_READY', 'active');
  await bed.guest('write -P 9 3M 64k');
  await bed.execute('block-job-complete', { device: 'active' });
  await bed.event('BLOCK_JOB_COMPLETED', 'active');
  await bed.guest('write -P 8 5M 64k');
  for (const stretch of ['1 0 1M', '2 1M 1M', '3 2M 1M', '9 3M 64k', '8 5M 64k'])
    await bed.guest(`read -P ${stretch}`);
}

for (const apart of APART) {
  test(`${apart.what}: nothing of it is open for writing below the guest's layer, but for a commit`, async (t) => {
    const bed = await chainOn(t, apart);
    assert.deepEqual(await writableOf(bed), []);
    const middle = { 'job-id': 'middle', device: 'C', 'top-node': 'B', 'base-node': 'A' };
    await bed.execute('block-commit', middle);
    await bed.event('BLOCK_JOB_COMPLETED', 'middle');
    assert.deepEqual(await writableOf(bed), []);
    await commitActive(bed);
    assert.deepEqual(await bed.layers(), ['A']);
  });

  test(`${apart.what}: opened as a backing file it is committed into`, async (t) => {
    const { engine, folder } = await chainOn(t, apart);
    await engine.close();
    const bed = new EngineBed(t, { folder });
    const file = { driver: 'file', filename: bed.path('C.qcow2') };
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'C', file });
    await bed.device('C');
    await commitActive(bed);
    await bed.engine.close();
  });
}
