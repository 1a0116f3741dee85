import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoOf } from '../../base/error.js';
import { newImage } from '../../block/create.js';
import type { DriverDescription, NodeOptions } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { DiskShelf } from '../../../test/kit/recorded-disk.js';
import { createQcow2 } from '../../../test/kit/new-qcow2.js';
import { qedDriver } from '../qed/index.js';
import { vdiDriver } from '../vdi/index.js';
import { qcow2Driver } from './driver.js';

/** Images in the disks of other images, whose sizes are in headers: they do not grow by being written. */

const MiB = 1024 * 1024;
const CLUSTER = 4096;
const PIECE = 4 * CLUSTER;

interface Format {
  driver: DriverDescription;
  options: NodeOptions;
}

const QCOW2: Format = { driver: qcow2Driver, options: { 'cluster-size': CLUSTER } };
const QED: Format = { driver: qedDriver, options: { 'cluster-size': CLUSTER, 'table-size': 1 } };
const VDI: Format = { driver: vdiDriver, options: {} };

/** A new image in a node, opened. */
async function made(
  shelf: DiskShelf,
  { driver, options }: Format,
  sizeBytes: number,
  file: Node,
): Promise<Node> {
  const { root } = (await shelf.attach(file)).backend;
  assert.ok(root);
  if (driver === qcow2Driver) await createQcow2(root, { sizeBytes, options });
  else
    await driver.create?.(root, newImage(driver, { sizeBytes, options }), shelf.graph.host, {
      filename: file.name,
      create: () => Promise.reject(new Error('one file')),
      secret: () => Buffer.from('password'),
      lookAt: () => Promise.reject(new Error('no backing file')),
    });
  await shelf.graph.transaction((transaction) => transaction.detach(root));
  return opened(shelf, driver, file.name);
}

function opened(shelf: DiskShelf, driver: DriverDescription, file: string): Promise<Node> {
  const options = { driver: driver.name, 'node-name': `${driver.name}-on-${file}`, file };
  return shelf.opener.open(options, { readOnly: false, discard: 'unmap' });
}

const piece = (at: number): Buffer => Buffer.alloc(PIECE, 1 + ((at / PIECE) % 255));

for (const [outer, inner, innerBytes] of [
  [QCOW2, QCOW2, 512 * 1024],
  [QCOW2, QED, 512 * 1024],
  [QCOW2, VDI, 2 * MiB],
  [VDI, QCOW2, 5 * MiB],
] as const)
  test(`a ${outer.driver.name} in the disk of a ${inner.driver.name} is full where that ends`, async () => {
    const shelf = new DiskShelf([qcow2Driver, qedDriver, vdiDriver]);
    shelf.put('image');
    const openFile = (): Promise<Node> =>
      shelf.opener.open({ driver: 'file', 'node-name': 'file', filename: 'image' }, { readOnly: false });
    const innerNode = await made(shelf, inner, innerBytes, await openFile());
    const disk = await shelf.attach(await made(shelf, outer, 8 * MiB, innerNode));
    const written: number[] = [];
    const failures = new Set<string>();
    for (let at = 0; at < 8 * MiB; at += PIECE)
      await disk.backend.write(at, piece(at)).then(
        () => written.push(at),
        (error: unknown) => failures.add(errnoOf(error)),
      );
    assert.deepEqual([...failures], ['ENOSPC']);
    assert.ok(written.length >= innerBytes / PIECE / 2, `${written.length} pieces`);
    assert.equal(innerNode.lengthBytes, innerBytes);
    await disk.close();
    await shelf.graph.collect([innerNode]);

    // What was answered is there, also for those who open it anew.
    await openFile();
    const innerAgain = await opened(shelf, inner.driver, 'file');
    const again = await shelf.attach(await opened(shelf, outer.driver, innerAgain.name));
    for (const at of written) assert.ok((await again.read(at, PIECE)).equals(piece(at)), `${at}`);
    for (const node of [again.node, innerAgain]) {
      const found = await node.instance.check?.('none', () => undefined);
      assert.deepEqual([found?.corruptions, found?.checkErrors], [0, 0], node.name);
    }
    await again.close();
  });
