import { Readable, Writable } from 'node:stream';
import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { BlockBackend } from '../block/backend.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';

/** A stream of a disk moves pieces of this. */
const PIECE_BYTES = MiB;

export interface DiskOptions {
  /** False: it is only read. */
  writable?: boolean;
  /** Lets others write meanwhile (true). */
  shareWrite?: boolean;
}

/** A stretch of a disk whose bytes are all alike. */
export interface Extent {
  readonly offset: number;
  readonly lengthBytes: number;
  /** Reads as zeroes, for certain. */
  readonly zero: boolean;
  /** Stored somewhere in the chain; false: a hole. */
  readonly data: boolean;
}

export interface Range {
  /** 0. */
  offset?: number;
  /** To the end of the disk. */
  lengthBytes?: number;
}

/**
 * A program's own use of a node. Requests see the whole chain below it, follow the node's users through snapshots and
 * pivots, and wait while a change of the graph holds them back. Offsets and lengths are bytes, of any alignment.
 * Errors of all requests: BlockError; kind invalid for wrong arguments, closed after close().
 */
export class Disk implements AsyncDisposable {
  readonly #graph: Graph;
  readonly #backend: BlockBackend;

  private constructor(graph: Graph, backend: BlockBackend) {
    this.#graph = graph;
    this.#backend = backend;
  }

  /** Errors: busy when the node's other users conflict; permission when it is read-only. */
  static async open(graph: Graph, node: Node, options: DiskOptions = {}): Promise<Disk> {
    const { writable = false, shareWrite = true } = options;
    const backend = graph.createBackend({
      description: `a disk of the program`,
      perm: Permission.consistentRead | (writable ? Permission.write : 0),
      shared: ALL_PERMISSIONS - (shareWrite ? 0 : Permission.write),
    });
    await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    return new Disk(graph, backend);
  }

  get lengthBytes(): number {
    return this.#backend.lengthBytes;
  }

  /** The node that it uses now. */
  get nodeName(): string {
    return this.#backend.node.name;
  }

  /** Fills `buffer`. */
  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#backend.read(offset, buffer);
  }

  /** Durable after a flush(). */
  write(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#backend.write(offset, buffer);
  }

  writeZeroes(offset: number, lengthBytes: number): Promise<void> {
    return this.#backend.writeZeroes(offset, lengthBytes);
  }

  /** A hint that the bytes are not needed; what is read there afterwards is old or zero. */
  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#backend.discard(offset, lengthBytes);
  }

  /** Everything written before the call is durable when it resolves. */
  flush(): Promise<void> {
    return this.#backend.flush();
  }

  /** What the disk holds, in order and without gaps; neighbours may be alike. */
  async *extents(range: Range = {}): AsyncGenerator<Extent, void, undefined> {
    const { offset, end } = this.#range(range);
    for (let at = offset; at < end;) {
      const { lengthBytes, zero, data } = await this.#backend.status(at, end - at);
      yield { offset: at, lengthBytes, zero, data };
      at += lengthBytes;
    }
  }

  /** The bytes of a range, as a Node.js stream. */
  readable(range: Range = {}): Readable {
    return Readable.from(this.#pieces(this.#range(range)), { objectMode: false, highWaterMark: PIECE_BYTES });
  }

  async *#pieces({ offset, end }: { offset: number; end: number }): AsyncGenerator<Buffer> {
    while (offset < end) {
      const piece = Buffer.alloc(Math.min(PIECE_BYTES, end - offset));
      await this.read(offset, piece);
      yield piece;
      offset += piece.length;
    }
  }

  /** A Node.js stream whose bytes go to the disk from `offset` on; durable when it has finished. */
  writable({ offset = 0 }: { offset?: number } = {}): Writable {
    let at = this.#range({ offset }).offset;
    return new Writable({
      highWaterMark: PIECE_BYTES,
      write: (chunk: Buffer, _encoding, done) => {
        const start = at;
        at += chunk.length;
        this.write(start, chunk).then(() => done(), done);
      },
      final: (done) => void this.flush().then(() => done(), done),
    });
  }

  /** The program uses it no more: requests in flight end well, what it wrote is durable. */
  async close(): Promise<void> {
    const { root } = this.#backend;
    if (!root) return;
    const { node } = root;
    const flushed = node.isWritable ? this.#backend.flush() : Promise.resolve();
    try {
      await flushed;
    } finally {
      await this.#graph.drained([node], () =>
        this.#graph.transaction((transaction) => {
          if (this.#backend.root) transaction.detach(this.#backend.root);
        }),
      );
      await this.#graph.collect([node]);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Errors: kind invalid. */
  #range({ offset = 0, lengthBytes }: Range): { offset: number; end: number } {
    const end = lengthBytes === undefined ? this.lengthBytes : offset + lengthBytes;
    const isRange = Number.isSafeInteger(offset) && Number.isSafeInteger(end) && offset >= 0 && end >= offset;
    if (isRange && end <= this.lengthBytes) return { offset, end };
    throw new BlockError('invalid', `The range is not within the disk's ${this.lengthBytes} bytes`);
  }
}
