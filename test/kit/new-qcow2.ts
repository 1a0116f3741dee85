import { newImage } from '../../src/block/create.js';
import type { ChildIo, CreateOptions } from '../../src/block/driver.js';
import type { NewQcow2 } from '../../src/drivers/qcow2/create-options.js';
import { createQcow2 as createChecked } from '../../src/drivers/qcow2/create.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';

/** Writes an empty image into a file; the options left out are the usual ones. */
export async function createQcow2(file: ChildIo, options: CreateOptions): Promise<void> {
  await createChecked(file, newImage(qcow2Driver, options) as NewQcow2);
}
