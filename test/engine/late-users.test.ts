import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import type { NodeOptions } from '../../src/block/driver.js';
import type { Graph } from '../../src/block/graph.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

const BLOCK = 65536;

/** A storage daemon whose disks are used over NBD by users that come and go. */
class UsersBed extends EngineBed {
  readonly #clients = new Map<string, NbdClient>();

  constructor(context: TestContext) {
    super(context, { kind: 'storage-daemon' });
    context.after(async () => {
      for (const client of this.#clients.values()) await client.close();
    });
  }

  #address(): { type: 'unix'; path: string } {
    return { type: 'unix', path: this.path('nbd.sock') };
  }

  async serve(): Promise<void> {
    const { type, path } = this.#address();
    await this.execute('nbd-server-start', { addr: { type, data: { path } } });
  }

  /** A user of a node. */
  async user(id: string, node: string, writable = true): Promise<void> {
    await this.execute('block-export-add', { type: 'nbd', id, name: id, 'node-name': node, writable });
    const { host } = this.engine;
    this.#clients.set(id, await NbdClient.connect({ host, address: this.#address(), exportName: id }));
  }

  #client(id: string): NbdClient {
    const client = this.#clients.get(id);
    assert.ok(client, id);
    return client;
  }

  write(id: string, offset: number, lengthBytes: number, value: number): Promise<void> {
    return this.#client(id).write(offset, Buffer.alloc(lengthBytes, value), 0);
  }

  async read(id: string, offset: number): Promise<number | undefined> {
    const bytes = Buffer.alloc(BLOCK);
    await this.#client(id).read(offset, bytes);
    assert.equal(bytes.equals(Buffer.alloc(BLOCK, bytes[0])), true, `${id} reads a mixture at ${offset}`);
    return bytes[0];
  }

  /** Each user writes something; all of `ids` see it. */
  async assertSameDisk(ids: readonly string[], writers: readonly string[]): Promise<void> {
    for (const [i, writer] of writers.entries()) {
      await this.write(writer, i * BLOCK, BLOCK, 0x40 + i);
      for (const id of ids) assert.equal(await this.read(id, i * BLOCK), 0x40 + i, `${id} after ${writer}`);
    }
  }

  async nodesOfUsers(): Promise<{ [id: string]: string }> {
    const exports = (await this.execute('query-block-exports')) as Array<{ id: string; 'node-name': string }>;
    return Object.fromEntries(exports.map((entry) => [entry.id, entry['node-name']]));
  }

  /** A target whose writes take a while. */
  async slowTarget(delayMs: number): Promise<void> {
    const filename = this.path('E.raw');
    await createImage(this.engine.opener, filename, 'raw', { sizeBytes: DISK_BYTES });
    const image = { driver: 'file', filename };
    const options: NodeOptions = {
      driver: 'raw',
      'node-name': 'E',
      file: { driver: 'blkdebug', image, 'x-delay': [{ iotype: 'write', 'delay-ms': delayMs }] },
    };
    await this.engine.addNode(options);
  }

  async ready(command: string, args: JsonObject): Promise<void> {
    await this.execute(command, { 'job-id': 'job', ...args });
    await this.event('BLOCK_JOB_READY', 'job');
  }

  async ended(): Promise<void> {
    const end = await this.event('BLOCK_JOB_COMPLETED', 'job');
    assert.equal(end['error'], undefined);
  }
}

/** Keeps the next drained section of that node open. */
function holdSection(graph: Graph, name: string): { reached: Promise<void>; goOn: () => void } {
  const [reached, goingOn] = [deferred(), deferred()];
  const drained = graph.drained.bind(graph);
  graph.drained = (nodes, body, owner) => {
    const isIt = [...nodes].some((node) => node.name === name);
    const waiting = async (): Promise<void> => {
      reached.resolve();
      await goingOn.promise;
    };
    return drained(nodes, isIt ? () => waiting().then(body) : body, owner);
  };
  return { reached: reached.promise, goOn: () => goingOn.resolve() };
}

const mirror = { device: 'D', target: 'E', sync: 'full' };

for (const named of [false, true]) {
  const filter = named ? { 'filter-node-name': 'top' } : {};
  for (const end of ['block-job-complete', 'block-job-cancel']) {
    const survivor = end === 'block-job-complete' ? 'E' : 'D';
    test(`users who came to the source of a mirror share the disk after ${end}, filter ${named ? 'named' : 'implicit'}`, async (t) => {
      const bed = new UsersBed(t);
      await bed.image('D');
      await bed.image('E');
      await bed.serve();
      await bed.user('early', 'D');
      await bed.ready('blockdev-mirror', { ...mirror, ...filter });
      await bed.user('late', 'D');
      await bed.user('reader', 'D', false);
      if (named) await bed.user('on-filter', 'top');
      await bed.execute('blockdev-add', { driver: 'raw', 'node-name': 'above', file: 'D' });
      await bed.user('on-above', 'above');
      const writers = ['early', 'late', 'on-above', ...(named ? ['on-filter'] : [])];
      await bed.assertSameDisk([...writers, 'reader'], writers);
      await bed.execute(end, { device: 'job' });
      await bed.ended();
      const onSurvivor = ['early', 'late', 'reader', ...(named ? ['on-filter'] : [])];
      assert.deepEqual(await bed.nodesOfUsers(), {
        ...Object.fromEntries(onSurvivor.map((id) => [id, survivor])),
        'on-above': 'above',
      });
      assert.equal(bed.engine.graph.node('above').child('file').node.name, survivor);
      await bed.assertSameDisk([...writers, 'reader'], writers);
    });
  }
}

test('users who came to the active layer share the base after its commit', async (t) => {
  const bed = new UsersBed(t);
  await bed.image('A');
  await bed.execute('blockdev-snapshot-sync', {
    'node-name': 'A',
    'snapshot-file': bed.path('D.qcow2'),
    'snapshot-node-name': 'made',
  });
  const file = { driver: 'file', filename: bed.path('D.qcow2') };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'D', file, backing: 'A' });
  await bed.serve();
  await bed.user('early', 'D');
  await bed.ready('block-commit', { device: 'D' });
  await bed.user('late', 'D');
  await bed.user('reader', 'D', false);
  await bed.assertSameDisk(['early', 'late', 'reader'], ['early', 'late']);
  await bed.execute('block-job-complete', { device: 'job' });
  await bed.ended();
  assert.deepEqual(await bed.nodesOfUsers(), { early: 'A', late: 'A', reader: 'A' });
  await bed.assertSameDisk(['early', 'late', 'reader'], ['early', 'late']);
});

test('a mirror that replaces a node below its source takes along who came to that node', async (t) => {
  const bed = new UsersBed(t);
  await bed.image('D');
  await bed.image('E');
  await bed.execute('blockdev-add', { driver: 'blkdebug', 'node-name': 'filter', image: 'D' });
  await bed.serve();
  await bed.user('early', 'filter');
  await bed.ready('blockdev-mirror', { ...mirror, device: 'filter', replaces: 'D' });
  await bed.user('late', 'D');
  await bed.execute('block-job-complete', { device: 'job' });
  await bed.ended();
  assert.deepEqual(await bed.nodesOfUsers(), { early: 'filter', late: 'E' });
  await bed.assertSameDisk(['early', 'late'], ['early', 'late']);
});

for (const at of ['D', 'top']) {
  test(`a user who comes to '${at}' in the drained section of a pivot waits, and loses nothing`, async (t) => {
    const bed = new UsersBed(t);
    await bed.image('D');
    await bed.image('E');
    await bed.serve();
    await bed.user('early', 'D');
    await bed.write('early', 0, BLOCK, 1);
    await bed.ready('blockdev-mirror', { ...mirror, 'filter-node-name': 'top' });
    const pivot = holdSection(bed.engine.graph, 'E');
    await bed.execute('block-job-complete', { device: 'job' });
    await pivot.reached;
    await bed.user('late', at);
    const written = bed.write('late', 0, BLOCK, 0x77);
    pivot.goOn();
    await written;
    assert.equal(await bed.read('late', 0), 0x77);
    await bed.ended();
    assert.deepEqual(await bed.nodesOfUsers(), { early: 'E', late: 'E' });
    await bed.assertSameDisk(['early', 'late'], ['early', 'late']);
  });
}

test('the point in time of a soft cancel holds against users who came past the filter', async (t) => {
  const bed = new UsersBed(t);
  await bed.image('D');
  await bed.slowTarget(100);
  await bed.serve();
  await bed.user('early', 'D');
  await bed.ready('blockdev-mirror', { ...mirror, 'buf-size': BLOCK });
  await bed.user('late', 'D');
  await bed.write('early', 0, 2 * MiB, 1);
  await bed.execute('block-job-cancel', { device: 'job' });
  await bed.write('late', MiB, MiB, 2);
  await bed.ended();
  const bytes = Buffer.alloc(2 * MiB);
  await bed.engine.graph.node('E').io.readBuffer(0, bytes);
  assert.equal(bytes.equals(Buffer.alloc(2 * MiB, 1)), true, 'the copy holds what was written later');
});

test('a write-blocking mirror is never behind users who came past the filter', async (t) => {
  const bed = new UsersBed(t);
  await bed.image('D');
  await bed.image('E');
  await bed.serve();
  await bed.user('early', 'D');
  await bed.ready('blockdev-mirror', { ...mirror, 'copy-mode': 'write-blocking' });
  await bed.user('late', 'D');
  await bed.write('late', 0, BLOCK, 5);
  const bytes = Buffer.alloc(BLOCK);
  await bed.engine.graph.node('E').io.readBuffer(0, bytes);
  assert.equal(bytes.equals(Buffer.alloc(BLOCK, 5)), true, 'the answered write is not in the target');
});

test('after a job its source is guarded no more', async (t) => {
  const bed = new UsersBed(t);
  await bed.image('D');
  await bed.image('E');
  await bed.serve();
  await bed.user('early', 'D');
  await bed.ready('blockdev-mirror', { ...mirror, 'copy-mode': 'write-blocking' });
  assert.notEqual(bed.engine.graph.node('D').gate, undefined);
  await bed.execute('job-cancel', { id: 'job' });
  await bed.event('BLOCK_JOB_CANCELLED', 'job');
  assert.equal(bed.engine.graph.node('D').gate, undefined);
  await bed.write('early', 0, BLOCK, 5);
  assert.equal(await bed.read('early', 0), 5);
});
