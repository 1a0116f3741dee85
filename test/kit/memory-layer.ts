import { BlockError, errnoError } from '../../src/base/error.js';
import type {
  ChildIo,
  DriverDescription,
  DriverInstance,
  GivenOptions,
  IoDriver,
  MapDriver,
  Reservation,
} from '../../src/block/driver.js';
import type { Graph } from '../../src/block/graph.js';
import { Node } from '../../src/block/node.js';
import type { BlockStatus, Mapping } from '../../src/block/request.js';
import { driverOptions } from '../../src/schema/blockdev-options.js';
import { type IoRequest } from '../../src/block/request.js';

/** How a MemoryFile answers: at once or later, and which requests it refuses. */
export interface MemoryBehaviour {
  /** Answers true when a request is to wait. */
  isLate(): boolean;
  /** Waits a while. */
  delay(): Promise<void>;
  /** Errno of a request that is to fail. */
  fault?(operation: 'read' | 'write' | 'flush', offset: number): string | undefined;
}

export const AT_ONCE: MemoryBehaviour = { isLate: () => false, delay: () => Promise.resolve() };

/** A growable file in memory, as a protocol driver. */
export class MemoryFile implements DriverInstance, IoDriver {
  bytes = Buffer.alloc(0);
  lengthBytes = 0;
  behaviour: MemoryBehaviour;
  readonly requestAlignmentBytes = 1;
  flushes = 0;

  constructor(behaviour: MemoryBehaviour) {
    this.behaviour = behaviour;
  }

  get io(): IoDriver {
    return this;
  }

  #put(offset: number, data: Uint8Array): void {
    this.#grow(offset + data.length);
    this.bytes.set(data, offset);
  }

  #grow(end: number): void {
    if (end > this.bytes.length) {
      const bytes = Buffer.alloc(Math.max(end, 2 * this.bytes.length));
      bytes.set(this.bytes);
      this.bytes = bytes;
    }
    this.lengthBytes = Math.max(this.lengthBytes, end);
  }

  #get(offset: number, pieces: readonly Uint8Array[]): void {
    let at = offset;
    for (const piece of pieces) {
      const part = this.bytes.subarray(at, at + piece.length);
      piece.set(part);
      piece.fill(0, part.length);
      at += piece.length;
    }
  }

  #check(operation: 'read' | 'write' | 'flush', offset: number): void {
    const errno = this.behaviour.fault?.(operation, offset);
    if (errno !== undefined) throw errnoError(errno);
  }

  tryRead(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    if (this.behaviour.isLate()) return false;
    this.#check('read', offset);
    this.#get(offset, request.pieces(from, lengthBytes));
    return true;
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    await this.behaviour.delay();
    this.#check('read', offset);
    this.#get(offset, request.pieces(from, lengthBytes));
    await this.behaviour.delay();
  }

  tryWrite(request: IoRequest, from: number, lengthBytes: number, offset: number): boolean {
    if (this.behaviour.isLate()) return false;
    this.#check('write', offset);
    this.#put(offset, request.gather(from, lengthBytes));
    return true;
  }

  async write(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    await this.behaviour.delay();
    this.#check('write', offset);
    this.#put(offset, request.gather(from, lengthBytes));
    await this.behaviour.delay();
  }

  writeZeroes(): Promise<void> {
    return Promise.reject(new BlockError('unsupported', 'Operation not supported'));
  }

  async discard(): Promise<void> {}

  async status(_offset: number, lengthBytes: number): Promise<BlockStatus> {
    return { lengthBytes, allocated: true, zero: false, data: true };
  }

  async truncate(lengthBytes: number): Promise<void> {
    this.#grow(lengthBytes);
    this.lengthBytes = lengthBytes;
  }

  async flush(): Promise<void> {
    await this.behaviour.delay();
    this.#check('flush', 0);
    this.flushes++;
  }

  info(): Record<string, never> {
    return {};
  }

  async close(): Promise<void> {}
}

/**
 * The smallest image format: a table in memory over a file. Freed clusters are reused at once, with what they held,
 * so that stale data shows.
 */
export class MemoryLayer implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  readonly clusterBytes: number;
  readonly map: MapDriver;
  lengthBytes: number;
  readonly table = new Map<number, number | 'zero'>();
  readonly #free: number[] = [];
  readonly #file: () => MemoryFile;
  readonly #child: () => ChildIo;
  #end = 0;
  /** What changeBacking wrote. */
  header: { filename: string | undefined; format: string | undefined } | undefined;
  isClosed = false;

  constructor(lengthBytes: number, clusterBytes: number, file: () => MemoryFile, child: () => ChildIo) {
    this.lengthBytes = lengthBytes;
    this.clusterBytes = clusterBytes;
    this.#file = file;
    this.#child = child;
    this.map = {
      clusterBytes,
      unitBytes: clusterBytes,
      get events() {
        return child();
      },
      tryMap: (at, length, out) => this.tryMap(at, length, out),
      map: async (at, length, out) => void this.tryMap(at, length, out),
      reserve: (at) => this.reserve(at),
      zeroClusters: (at, length) => this.zeroClusters(at, length),
      discardClusters: (at, length) => this.zeroClusters(at, length),
    };
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const cluster = this.clusterBytes;
    const index = Math.floor(offset / cluster);
    const entry = this.table.get(index);
    let end = (index + 1) * cluster;
    const follows = (at: number): boolean => {
      const next = this.table.get(at / cluster);
      return typeof entry === 'number' ? next === entry + at - index * cluster : next === entry;
    };
    while (end < offset + lengthBytes && follows(end)) end += cluster;
    out.lengthBytes = Math.min(lengthBytes, end - offset);
    out.kind = entry === undefined ? 'backing' : entry === 'zero' ? 'zero' : 'data';
    out.child = typeof entry === 'number' ? this.#child() : undefined;
    out.hostOffset = typeof entry === 'number' ? entry + (offset % cluster) : -1;
    out.plain = true;
    out.writable = true;
    return true;
  }

  async reserve(offset: number): Promise<Reservation> {
    await this.#file().behaviour.delay();
    const cluster = this.clusterBytes;
    const index = Math.floor(offset / cluster);
    const old = this.table.get(index);
    const reused = this.#free.pop();
    const hostOffset = reused ?? this.#end;
    if (reused === undefined) this.#end += cluster;
    return {
      offset: index * cluster,
      lengthBytes: cluster,
      child: this.#child(),
      plain: true,
      hostOffset,
      readsZero: reused === undefined,
      before: old === 'zero' ? 'zero' : 'mixed',
      link: () => {
        if (this.table.get(index) !== old) throw new Error('the mapping changed under a reservation');
        this.table.set(index, hostOffset);
      },
      abort: () => void this.#free.push(hostOffset),
    };
  }

  async zeroClusters(offset: number, lengthBytes: number): Promise<void> {
    const cluster = this.clusterBytes;
    for (let at = offset; at < offset + lengthBytes; at += cluster) {
      const old = this.table.get(at / cluster);
      if (typeof old === 'number') this.#free.push(old);
      this.table.set(at / cluster, 'zero');
    }
  }

  flush(): Promise<void> {
    return this.#file().flush();
  }

  async truncate(lengthBytes: number): Promise<void> {
    this.lengthBytes = lengthBytes;
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    this.header = { filename, format };
  }

  info(): { clusterSizeBytes: number } {
    return { clusterSizeBytes: this.clusterBytes };
  }

  async close(): Promise<void> {
    this.isClosed = true;
  }
}

function describe(name: string, kind: 'protocol' | 'format'): DriverDescription {
  const isFormat = kind === 'format';
  const options = driverOptions({}, isFormat ? [{ role: 'file', required: true }] : [], isFormat);
  const open = (): Promise<DriverInstance> => Promise.reject(new Error('made by newMemoryImage only'));
  const filename = ({ filename: name }: GivenOptions): string | undefined =>
    typeof name === 'string' ? name : undefined;
  return isFormat ? { name, kind, options, open } : { name, kind, options, open, filename };
}

export interface MemoryImage {
  node: Node;
  layer: MemoryLayer;
  file: MemoryFile;
}

export interface MemoryImageOptions {
  lengthBytes: number;
  clusterBytes: number;
  backing?: Node;
  readOnly?: boolean;
  behaviour?: MemoryBehaviour;
}

/** An image node over a file node, both in memory, in the graph; the user's own (monitorOwned). */
export async function newMemoryImage(
  graph: Graph,
  name: string,
  options: MemoryImageOptions,
): Promise<MemoryImage> {
  const readOnly = options.readOnly ?? false;
  const properties = { options: { filename: `./${name}.img` }, readOnly };
  const fileNode = new Node({
    ...properties,
    name: `${name}-file`,
    driver: describe('memory', 'protocol'),
    monitorOwned: false,
  });
  const file = new MemoryFile(options.behaviour ?? AT_ONCE);
  fileNode.opened(file);
  const node = new Node({
    ...properties,
    name,
    driver: describe('layer', 'format'),
    monitorOwned: true,
  });
  const layer = new MemoryLayer(
    options.lengthBytes,
    options.clusterBytes,
    () => file,
    () => node.child('file'),
  );
  node.opened(layer);
  await graph.transaction((transaction) => {
    transaction.add(fileNode);
    transaction.add(node);
    transaction.attach(node, 'file', fileNode);
    if (options.backing) transaction.attach(node, 'backing', options.backing);
  });
  node.automaticBacking = options.backing?.filename;
  return { node, layer, file };
}
