import { writeFile } from 'node:fs/promises';
import type { NodeOptions } from '../../block/driver.js';
import { formatConformance } from '../../../test/kit/conformance.js';
import type { TestBed } from '../../../test/kit/test-disk.js';
import { encodeDynamicHeader, encodeFooter } from './footer.js';
import { LARGEST } from './geometry.js';
import { vpcDriver } from './index.js';

const BLOCK_BYTES = 4096;

/** A dynamic disk with blocks smaller than those that we make. */
async function create(bed: TestBed, sizeBytes: number): Promise<NodeOptions> {
  const filename = bed.newPath('vhd');
  const tableEntries = Math.ceil(sizeBytes / BLOCK_BYTES);
  const footer = encodeFooter({
    sizeBytes,
    geometry: LARGEST,
    isFixed: false,
    isBySize: true,
    unixSeconds: 2e9,
    uuid: Buffer.alloc(16, 7),
  });
  const header = encodeDynamicHeader({
    blockBytes: BLOCK_BYTES,
    bitmapBytes: 512,
    tableOffset: 1536,
    tableEntries,
  });
  await writeFile(filename, Buffer.concat([footer, header, Buffer.alloc(512, 0xff), footer]));
  return { driver: 'vpc', file: { driver: 'file', filename } };
}

formatConformance({
  name: 'vpc',
  driver: vpcDriver,
  unitBytes: BLOCK_BYTES,
  runs: 5,
  create,
  canGrow: false,
});

formatConformance({
  name: 'vpc, fixed',
  driver: vpcDriver,
  unitBytes: BLOCK_BYTES,
  runs: 5,
  saysZeroData: true,
  options: { subformat: 'fixed', 'force-size': true },
  canGrow: false,
});
