import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { NO_TRACE_OUTPUT, Trace } from '../../base/trace.js';
import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { BlockBackend } from '../backend.js';
import type { ChildIo, DriverDescription, DriverInstance, MapDriver, Reservation } from '../driver.js';
import { Graph } from '../graph.js';
import { Node } from '../node.js';
import { ALL_PERMISSIONS, Permission } from '../permissions.js';
import { Flag, type Mapping } from '../request.js';
import { driverOptions } from '../../schema/blockdev-options.js';
import { type IoRequest } from '../request.js';

const CLUSTER = 16;
const DISK = 10 * CLUSTER + 5;

/** A growable file in memory that answers at random at once or later. */
class MemoryFile implements DriverInstance {
  bytes = Buffer.alloc(0);
  readonly requestAlignmentBytes = 1;
  constructor(
    readonly random: () => number,
    readonly alwaysAsync: boolean,
  ) {}

  get lengthBytes(): number {
    return this.bytes.length;
  }

  #put(offset: number, data: Uint8Array): void {
    if (offset + data.length > this.bytes.length) {
      this.bytes = Buffer.concat([this.bytes, Buffer.alloc(offset + data.length - this.bytes.length)]);
    }
    this.bytes.set(data, offset);
  }

  async #later(): Promise<void> {
    for (let turns = this.random() % 4; turns > 0; turns--) await Promise.resolve();
  }

  readonly io = {
    tryRead: (request: IoRequest, from: number, lengthBytes: number, offset: number): boolean => {
      if (this.alwaysAsync || this.random() % 2 === 0) return false;
      request.copyFrom(this.bytes.subarray(offset, offset + lengthBytes), from);
      return true;
    },
    read: async (request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> => {
      await this.#later();
      request.copyFrom(this.bytes.subarray(offset, offset + lengthBytes), from);
      await this.#later();
    },
    tryWrite: (request: IoRequest, from: number, lengthBytes: number, offset: number): boolean => {
      if (this.alwaysAsync || this.random() % 2 === 0) return false;
      this.#put(offset, request.gather(from, lengthBytes));
      return true;
    },
    write: async (request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> => {
      await this.#later();
      this.#put(offset, request.gather(from, lengthBytes));
      await this.#later();
    },
    writeZeroes: async (): Promise<void> => {
      throw new BlockError('unsupported', 'Operation not supported');
    },
    discard: async (): Promise<void> => undefined,
    status: async (_offset: number, lengthBytes: number) => ({
      lengthBytes,
      allocated: true,
      zero: false,
      data: true,
    }),
  };
  async flush(): Promise<void> {}
  info(): Record<string, never> {
    return {};
  }
  async close(): Promise<void> {}
}

/** The smallest mapping format: a table in memory. Freed clusters are reused at once, dirty, to catch stale data. */
class ToyFormat implements MapDriver {
  readonly requestAlignmentBytes = 1;
  readonly clusterBytes = CLUSTER;
  readonly unitBytes = CLUSTER;
  readonly table = new Map<number, number | 'zero'>();
  readonly free: number[] = [];
  end = 0;
  constructor(
    readonly lengthBytes: number,
    readonly child: () => ChildIo,
  ) {}

  get events(): ChildIo {
    return this.child();
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const entry = this.table.get(Math.floor(offset / CLUSTER));
    out.lengthBytes = Math.min(lengthBytes, CLUSTER - (offset % CLUSTER));
    out.kind = entry === undefined ? 'backing' : entry === 'zero' ? 'zero' : 'data';
    out.child = typeof entry === 'number' ? this.child() : undefined;
    out.hostOffset = typeof entry === 'number' ? entry + (offset % CLUSTER) : -1;
    out.plain = true;
    out.writable = true;
    return true;
  }
  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    this.tryMap(offset, lengthBytes, out);
  }
  async reserve(offset: number): Promise<Reservation> {
    const index = Math.floor(offset / CLUSTER);
    const old = this.table.get(index);
    const reused = this.free.pop();
    const hostOffset = reused ?? this.end;
    if (reused === undefined) this.end += CLUSTER;
    return {
      offset: index * CLUSTER,
      lengthBytes: CLUSTER,
      child: this.child(),
      plain: true,
      hostOffset,
      readsZero: reused === undefined,
      before: old === 'zero' ? 'zero' : 'mixed',
      link: () => {
        assert.equal(this.table.get(index), old, 'the mapping changed under a reservation');
        this.table.set(index, hostOffset);
      },
      abort: () => void this.free.push(hostOffset),
    };
  }
  async zeroClusters(offset: number, lengthBytes: number): Promise<void> {
    assert.equal(offset % CLUSTER, 0);
    for (let at = offset; at < offset + lengthBytes; at += CLUSTER) {
      const old = this.table.get(at / CLUSTER);
      if (typeof old === 'number') this.free.push(old);
      this.table.set(at / CLUSTER, 'zero');
    }
  }
  async discardClusters(offset: number, lengthBytes: number): Promise<void> {
    await this.zeroClusters(offset, lengthBytes);
  }
  async flush(): Promise<void> {}
  info(): Record<string, never> {
    return {};
  }
  async close(): Promise<void> {}
}

function describe(name: string, kind: 'protocol' | 'format'): DriverDescription {
  return {
    name,
    kind,
    options: driverOptions({}, kind === 'format' ? [{ role: 'file', required: true }] : []),
    open: () => Promise.reject(new Error('not opened by options')),
  };
}

interface Disk {
  backend: BlockBackend;
  model: Buffer;
}

/** [base] <-- [top], both toy formats over memory files; the base is shorter than the disk. */
async function build(random: () => number, alwaysAsync: boolean): Promise<Disk> {
  const graph = new Graph({
    clock: { nowMs: () => 0 },
    trace: new Trace(NO_TRACE_OUTPUT),
  } as unknown as Host);
  const layer = (name: string, lengthBytes: number): Node[] => {
    const file = newNode(`${name}-file`, describe('memory', 'protocol'));
    file.opened(new MemoryFile(random, alwaysAsync));
    const format = newNode(name, describe('toy', 'format'));
    const toy = new ToyFormat(lengthBytes, () => format.child('file'));
    const instance: DriverInstance = {
      lengthBytes,
      requestAlignmentBytes: 1,
      map: toy,
      flush: () => toy.flush(),
      info: () => ({}),
      close: () => toy.close(),
    };
    format.opened(instance);
    return [format, file];
  };
  const baseLength = 6 * CLUSTER + 3;
  const [base, baseFile] = layer('base', baseLength) as [Node, Node];
  const [top, topFile] = layer('top', DISK) as [Node, Node];
  const filler = newBackend(graph);
  await graph.transaction((transaction) => {
    for (const node of [base, baseFile, top, topFile]) transaction.add(node);
    transaction.attach(base, 'file', baseFile);
    transaction.attach(filler, 'root', base);
  });
  const model = Buffer.alloc(DISK);
  model.fill('base data ', 0, baseLength);
  await filler.write(0, model.subarray(0, baseLength));
  const root = filler.root;
  assert.ok(root);
  const backend = newBackend(graph);
  await graph.transaction((transaction) => {
    transaction.detach(root);
    transaction.attach(top, 'file', topFile);
    transaction.attach(top, 'backing', base);
    transaction.attach(backend, 'root', top);
  });
  return { backend, model };
}

function newNode(name: string, driver: DriverDescription): Node {
  return new Node({ name, driver, options: {}, readOnly: false, monitorOwned: true });
}

function newBackend(graph: Graph): BlockBackend {
  const perm = Permission.consistentRead | Permission.write;
  return graph.createBackend({ description: 'the test', perm, shared: ALL_PERMISSIONS });
}

const kinds = fc.constantFrom<'write' | 'zero' | 'unmap' | 'discard'>('write', 'zero', 'unmap', 'discard');
const operation = fc.record({
  kind: kinds,
  offset: fc.nat(DISK - 1),
  length: fc.nat(3 * CLUSTER),
  value: fc.integer({ min: 1, max: 255 }),
});
type Op = { kind: 'write' | 'zero' | 'unmap' | 'discard'; offset: number; length: number; value: number };

function newRandom(seed: number): () => number {
  let state = seed + 1;
  return () => (state = (state * 48271) % 2147483647);
}

async function perform(backend: BlockBackend, { kind, offset, length, value }: Op): Promise<void> {
  const bytes = Math.min(length, DISK - offset);
  if (kind === 'write') {
    const data = Buffer.alloc(bytes, value);
    if (!backend.tryWrite(offset, data, Flag.none)) await backend.write(offset, data);
  } else if (kind === 'discard') await backend.discard(offset, bytes);
  else await backend.writeZeroes(offset, bytes, kind === 'unmap' ? Flag.mayUnmap : Flag.none);
}

async function readAll(backend: BlockBackend): Promise<Buffer> {
  const buffer = Buffer.alloc(DISK, 0xee);
  if (!backend.tryRead(0, buffer)) await backend.read(0, buffer);
  return buffer;
}

for (const alwaysAsync of [false, true]) {
  const path = alwaysAsync ? 'asynchronous' : 'mixed';
  test(`writes, zeroes and discards over a backing file read back right (${path} path)`, async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 25 }), fc.nat(), async (operations, seed) => {
        const { backend, model } = await build(newRandom(seed), alwaysAsync);
        for (const op of operations) {
          await perform(backend, op);
          const end = Math.min(op.offset + op.length, DISK);
          if (op.kind === 'write') model.fill(op.value, op.offset, end);
          else if (op.kind !== 'discard') model.fill(0, op.offset, end);
          else {
            // A discard may zero whole clusters or do nothing: take over what it did, if that is either.
            const now = await readAll(backend);
            for (let i = op.offset; i < end; i++) {
              assert.ok(now[i] === model[i] || now[i] === 0, `discard shows foreign data at ${i}`);
              model[i] = now[i] ?? 0;
            }
          }
          assert.deepEqual(await readAll(backend), model);
        }
      }),
      { numRuns: 150 },
    );
  });
}

test('concurrent requests to the same clusters each take effect whole, wherever they do not overlap', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(operation, { minLength: 2, maxLength: 12 }),
      fc.nat(),
      async (operations, seed) => {
        const { backend, model } = await build(newRandom(seed), false);
        const writes = operations.filter((op) => op.kind !== 'discard');
        await Promise.all(writes.map((op) => perform(backend, op)));
        const now = await readAll(backend);
        for (let i = 0; i < DISK; i++) {
          const touching = writes.filter((op) => op.offset <= i && i < op.offset + op.length);
          const allowed =
            touching.length === 0 ? [model[i]] : touching.map((op) => (op.kind === 'write' ? op.value : 0));
          assert.ok(allowed.includes(now[i]), `byte ${i} is ${now[i]}, not one of ${allowed.join()}`);
        }
      },
    ),
    { numRuns: 150 },
  );
});

test('block status tells zero only where zeroes are read', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 12 }), fc.nat(), async (operations, seed) => {
      const { backend } = await build(newRandom(seed), false);
      for (const op of operations) await perform(backend, op);
      const content = await readAll(backend);
      for (let at = 0; at < DISK;) {
        const status = await backend.status(at, DISK - at);
        const part = content.subarray(at, at + status.lengthBytes);
        assert.ok(!status.zero || part.every((byte) => byte === 0), `status says zero at ${at}`);
        at += status.lengthBytes;
      }
    }),
    { numRuns: 60 },
  );
});

test('a request beyond the end fails and changes nothing', async () => {
  const { backend, model } = await build(newRandom(1), false);
  await assert.rejects(backend.write(DISK - 1, Buffer.alloc(2)), { errno: 'EIO' });
  await assert.rejects(backend.read(DISK, Buffer.alloc(1)), { errno: 'EIO' });
  assert.deepEqual(await readAll(backend), model);
});
