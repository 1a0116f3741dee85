import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { MAX_CHAIN_DEPTH, MiB } from '../../src/base/limits.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { createImage } from '../../src/block/create.js';
import { Graph } from '../../src/block/graph.js';
import { Opener } from '../../src/block/open.js';
import { DriverRegistry } from '../../src/block/registry.js';

interface Bed {
  opener: Opener;
  folder: string;
}

function newBed(context: TestContext): Bed {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-chain-'));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  return { opener: new Opener(new Graph(createRealHost()), new DriverRegistry(allDrivers)), folder };
}

/** Empty images 1, 2, ... each over the one before, and 0 with data. Answers the path of the last. */
async function chainOf(bed: Bed, overlays: number): Promise<string> {
  const { opener, folder } = bed;
  const path = (index: number): string => join(folder, String(index).padStart(4, '0'));
  await createImage(opener, path(0), 'qcow2', { sizeBytes: MiB });
  const base = await opener.openImage(path(0), 'qcow2', { readOnly: false });
  const backend = opener.graph.createBackend({ description: 'a test', perm: 3, shared: 31 });
  await opener.graph.transaction((transaction) => void transaction.attach(backend, 'root', base));
  await backend.write(4096, Buffer.alloc(4096, 7));
  const { root } = backend;
  assert.ok(root);
  await opener.graph.transaction((transaction) => transaction.detach(root));
  await opener.graph.collect([base]);
  const options = { sizeBytes: MiB, backingFile: '0000', backingFormat: 'qcow2' };
  await createImage(opener, path(1), 'qcow2', options);
  const first = readFileSync(path(1));
  const nameAt = Number(first.readBigUInt64BE(8));
  for (let index = 2; index <= overlays; index++) {
    first.write(String(index - 1).padStart(4, '0'), nameAt);
    writeFileSync(path(index), first);
  }
  return path(overlays);
}

const skip = spawnSync('qemu-io', ['--version']).error ? 'qemu-io is not installed' : false;

test('the longest chain opens, is read to its end, and QEMU opens it too', { skip }, async (t) => {
  const bed = newBed(t);
  const { opener } = bed;
  const top = await chainOf(bed, MAX_CHAIN_DEPTH);
  const node = await opener.openImage(top, 'qcow2', { readOnly: true });
  const bytes = Buffer.alloc(8192);
  await node.io.readBuffer(0, bytes);
  assert.equal(bytes.indexOf(7), 4096);
  assert.equal(bytes.lastIndexOf(7), 8191);
  assert.equal(node.filename, top);
  assert.equal((await node.statusThroughChain(4096, 4096)).depth, MAX_CHAIN_DEPTH);
  const theirs = spawnSync('qemu-io', ['-r', '-c', 'read -P 7 4k 4k', top], { encoding: 'utf8' });
  assert.match(theirs.stdout, /^read 4096\/4096/);
  await opener.graph.collect([node]);
  assert.equal(opener.graph.nodes.size, 0);
});
