import { NO_TRACE_OUTPUT, Trace } from '../../src/base/trace.js';
import { ByteRanges } from '../../src/base/byte-ranges.js';
import { missing } from '../../src/base/assert.js';
import { BlockError } from '../../src/base/error.js';
import type {
  ChildIo,
  DriverDescription,
  DriverInstance,
  IoDriver,
  NodeOptions,
} from '../../src/block/driver.js';
import { DriverRegistry } from '../../src/block/registry.js';
import { BlockBackend } from '../../src/block/backend.js';
import { Graph } from '../../src/block/graph.js';
import { CHECKED } from '../../src/block/layers/layer-maps.js';
import type { Node } from '../../src/block/node.js';
import { Opener } from '../../src/block/open.js';
import { Permission } from '../../src/block/permissions.js';
import type { BlockStatus, IoRequest } from '../../src/block/request.js';
import type { Host } from '../../src/host/host.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';
import { required, str } from '../../src/schema/types.js';
import { computeHere } from './compute-here.js';

export type DiskEvent =
  | { kind: 'write'; offset: number; bytes: Buffer }
  | { kind: 'flush' }
  /** Set by a test to tell what the guest knew at this moment. */
  | { kind: 'mark'; label: string };

/** A file in memory that remembers what was written and flushed, for crash tests. */
export class RecordedDisk {
  #bytes: Buffer;
  readonly log: DiskEvent[] = [];
  /** The content when recording began. */
  readonly #initial: Buffer;
  /** Answer try* calls; false forces the promise forms. */
  synchronous = true;
  /** Flushes that are numbered so (from 0) are lost: what a mutation test removes. */
  dropFlush: (index: number) => boolean = () => false;
  /** Thrown by writes and flushes when it answers an error. */
  failure: (event: 'write' | 'flush', offset: number) => Error | undefined = () => undefined;
  /** Called with each named event of the driver above. */
  onEvent: ((event: string) => Promise<void> | undefined) | undefined;
  flushes = 0;

  constructor(initial: Buffer = Buffer.alloc(0)) {
    this.#bytes = Buffer.from(initial);
    this.#initial = Buffer.from(initial);
  }

  get lengthBytes(): number {
    return this.#bytes.length;
  }

  /** The content now. */
  contents(): Buffer {
    return Buffer.from(this.#bytes);
  }

  get initial(): Buffer {
    return this.#initial;
  }

  mark(label: string): void {
    this.log.push({ kind: 'mark', label });
  }

  read(offset: number, buffer: Uint8Array): void {
    buffer.fill(0);
    this.#bytes.copy(buffer, 0, offset, offset + buffer.length);
  }

  readInto(request: IoRequest, from: number, lengthBytes: number, offset: number): void {
    const bytes = Buffer.alloc(lengthBytes);
    this.read(offset, bytes);
    request.copyFrom(bytes, from);
  }

  write(offset: number, buffer: Uint8Array): void {
    const error = this.failure('write', offset);
    if (error) throw error;
    const bytes = Buffer.from(buffer);
    this.log.push({ kind: 'write', offset, bytes });
    this.#bytes = applyWrite(this.#bytes, offset, bytes);
  }

  flush(): void {
    const error = this.failure('flush', 0);
    if (error) throw error;
    if (!this.dropFlush(this.flushes++)) this.log.push({ kind: 'flush' });
  }

  /** A write of nothing that ends there. */
  extend(lengthBytes: number): void {
    if (lengthBytes > this.lengthBytes) this.write(lengthBytes, Buffer.alloc(0));
  }

  truncate(lengthBytes: number): void {
    const grown = Buffer.alloc(lengthBytes);
    this.#bytes.copy(grown);
    this.#bytes = grown;
  }
}

/** `bytes` with a write applied; grown with zeroes when it reaches past the end. */
export function applyWrite(bytes: Buffer, offset: number, data: Buffer): Buffer {
  let target = bytes;
  if (offset + data.length > bytes.length) {
    target = Buffer.alloc(offset + data.length);
    bytes.copy(target);
  }
  data.copy(target, offset);
  return target;
}

function recordedInstance(disk: RecordedDisk): DriverInstance {
  const io: IoDriver = {
    tryRead: (request, from, lengthBytes, offset) => {
      if (disk.synchronous) disk.readInto(request, from, lengthBytes, offset);
      return disk.synchronous;
    },
    read: async (request, from, lengthBytes, offset) => disk.readInto(request, from, lengthBytes, offset),
    tryWrite: (request, from, lengthBytes, offset) => {
      if (disk.synchronous) disk.write(offset, request.gather(from, lengthBytes));
      return disk.synchronous;
    },
    write: async (request, from, lengthBytes, offset) => {
      const bytes = Buffer.from(request.gather(from, lengthBytes));
      await Promise.resolve();
      disk.write(offset, bytes);
    },
    writeZeroes: async (offset, lengthBytes) => disk.write(offset, Buffer.alloc(lengthBytes)),
    discard: async (offset, lengthBytes) => {
      const inside = Math.min(lengthBytes, disk.lengthBytes - offset);
      if (inside > 0) disk.write(offset, Buffer.alloc(inside));
    },
    status: async (offset, lengthBytes): Promise<BlockStatus> => ({
      lengthBytes,
      allocated: true,
      zero: false,
      data: true,
      hostOffset: offset,
    }),
    extend: async (lengthBytes) => disk.extend(lengthBytes),
    tryExtend: (lengthBytes) => {
      if (disk.synchronous) disk.extend(lengthBytes);
      return disk.synchronous;
    },
  };
  const instance: DriverInstance = {
    get lengthBytes() {
      return disk.lengthBytes;
    },
    requestAlignmentBytes: 1,
    io,
    flush: async () => disk.flush(),
    truncate: async (lengthBytes) => disk.truncate(lengthBytes),
    info: () => ({}),
    close: async () => undefined,
  };
  if (disk.onEvent) instance.announce = (event) => disk.onEvent?.(event);
  return instance;
}

/** A disk as a driver's `file` child, without a graph around it. */
export function childOf(disk: RecordedDisk): ChildIo {
  return {
    get lengthBytes() {
      return disk.lengthBytes;
    },
    isWritable: true,
    takeDoubtful: () => new ByteRanges(),
    tellCutOff: () => undefined,
    tryRead: (offset, buffer) => {
      disk.read(offset, buffer);
      return true;
    },
    read: async (offset, buffer) => disk.read(offset, buffer),
    tryWrite: (offset, buffer) => {
      disk.write(offset, buffer);
      return true;
    },
    write: async (offset, buffer) => disk.write(offset, buffer),
    tryReadPart: (request, from, lengthBytes, offset) => {
      disk.readInto(request, from, lengthBytes, offset);
      return true;
    },
    readPart: async (request, from, lengthBytes, offset) => disk.readInto(request, from, lengthBytes, offset),
    tryWritePart: (request, from, lengthBytes, offset) => {
      disk.write(offset, request.gather(from, lengthBytes));
      return true;
    },
    writePart: async (request, from, lengthBytes, offset) =>
      disk.write(offset, await request.bytes(from, lengthBytes)),
    writeZeroes: async (offset, lengthBytes) => disk.write(offset, Buffer.alloc(lengthBytes)),
    discard: async () => undefined,
    flush: async () => disk.flush(),
    locate: async (_offset, lengthBytes) => ({ kind: 'other', lengthBytes }),
    allocatedBytes: () => undefined,
    isListening: disk.onEvent !== undefined,
    status: async (_offset, lengthBytes) => ({ lengthBytes, allocated: true, zero: false, data: true }),
    chainStatus: async (_offset, lengthBytes) => ({
      ...{ lengthBytes, allocated: true, zero: false, data: true, depth: 0 },
      node: missing('a node around a recorded disk'),
    }),
    snapshotAccess: undefined,
    compression: { isPossible: false, clusterBytes: 1, driverName: 'recorded' },
    copyOnRead: () => Promise.resolve(),
    truncate: async (lengthBytes) => disk.truncate(lengthBytes),
    allocate: async () => undefined,
    tryAllocate: () => true,
    extend: async (lengthBytes) => disk.extend(lengthBytes),
    tryExtend: (lengthBytes) => {
      disk.extend(lengthBytes);
      return true;
    },
    announce: (event) => disk.onEvent?.(event),
    driverInfo: () => ({}),
    startWriteback: () => undefined,
  };
}

export interface OpenMode {
  readOnly?: boolean;
  /** Whatever is wrong with it. */
  forCheck?: boolean;
}

/** Disks by name behind a driver called `file`, so that backing names in headers find them. */
export class DiskShelf {
  readonly disks = new Map<string, RecordedDisk>();
  #randoms = 0;
  readonly graph: Graph;
  readonly opener: Opener;

  constructor(drivers: Iterable<DriverDescription>) {
    const host = {
      random: {
        below: () => 0,
        bytes: (length: number) => Buffer.alloc(length, 1 + (this.#randoms++ % 255)),
      },
      clock: {
        nowMs: () => 0,
        wallClock: () => ({ seconds: 1.9e9, microseconds: 0 }),
        setTimer: () => ({ cancel: () => undefined }),
        macrotask: () => Promise.resolve(),
      },
      compute: computeHere,
      trace: new Trace(NO_TRACE_OUTPUT),
    } as unknown as Host;
    this.graph = new Graph(host);
    this.graph.layerMaps.settings = CHECKED;
    this.opener = new Opener(this.graph, new DriverRegistry([this.#fileDriver(), ...drivers]));
  }

  /** Puts an image in place of what the name had. */
  put(name: string, content: Buffer = Buffer.alloc(0)): RecordedDisk {
    const disk = new RecordedDisk(content);
    this.disks.set(name, disk);
    return disk;
  }

  disk(name: string): RecordedDisk {
    const disk = this.disks.get(name);
    if (!disk) throw new BlockError('not-found', `Could not open '${name}': No such file or directory`);
    return disk;
  }

  /** Opens a format node over a disk and a backend on it. */
  async open(name: string, options: NodeOptions & OpenMode = {}): Promise<OpenDisk> {
    const { readOnly = false, forCheck = false, driver = 'qcow2', ...rest } = options;
    const all: NodeOptions = { driver, file: { driver: 'file', filename: name }, ...rest };
    return this.attach(await this.opener.open(all, { readOnly, forCheck, discard: 'unmap' }), readOnly);
  }

  /** A user of a node. */
  async attach(node: Node, readOnly = false): Promise<OpenDisk> {
    const writing = Permission.write | Permission.resize;
    const backend = this.graph.createBackend({
      description: 'a test',
      perm: Permission.consistentRead | (readOnly ? 0 : writing),
      shared: Permission.consistentRead | Permission.write | Permission.writeUnchanged | Permission.resize,
    });
    await this.graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    return new OpenDisk(this.graph, node, backend);
  }

  #fileDriver(): DriverDescription<typeof RECORDED_FILE> {
    return {
      name: 'file',
      kind: 'protocol',
      options: RECORDED_FILE,
      open: async (_context, { filename }) => recordedInstance(this.disk(filename)),
      filename: ({ filename }) => (typeof filename === 'string' ? filename : undefined),
      hasFolders: true,
      parseFilename: (filename) => ({ filename }),
    };
  }
}

const RECORDED_FILE = driverOptions({ filename: required(str) });

/** A node in use by a test. */
export class OpenDisk {
  readonly #graph: Graph;
  readonly node: Node;
  readonly backend: BlockBackend;

  constructor(graph: Graph, node: Node, backend: BlockBackend) {
    this.#graph = graph;
    this.node = node;
    this.backend = backend;
  }

  async read(offset: number, lengthBytes: number): Promise<Buffer> {
    const buffer = Buffer.alloc(lengthBytes, 0xee);
    await this.backend.read(offset, buffer);
    return buffer;
  }

  async close(): Promise<void> {
    const root = this.backend.root;
    if (root) await this.#graph.transaction((transaction) => transaction.detach(root));
    await this.#graph.collect([this.node]);
  }

  /** Leaves without closing, as a crash does: nothing more is written. */
  get instance(): DriverInstance {
    return this.node.instance;
  }
}
