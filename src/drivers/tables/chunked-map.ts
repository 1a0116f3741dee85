import { AsyncMutex } from '../../base/async.js';
import { errnoError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import type { ChildIo } from '../../block/driver.js';
import type { Mapping } from '../../block/request.js';
import type { ComputeFunction, HostCompute } from '../../host/compute.js';
import { outsideFile } from './entry-cache.js';
import { readBytes } from './read-bytes.js';
import { ReadOnlyMap } from './read-only-node.js';

/** Chunks that were expanded last are kept, so much of them; the last one whatever its size. */
const KEPT_BYTES = 8 * MiB;
/** Larger ones are expanded one at a time. */
const LARGE_BYTES = 4 * MiB;

/** A stretch of the disk, and where its content is. */
export interface Chunk {
  readonly offset: number;
  readonly lengthBytes: number;
  /** How what the file holds becomes the disk's bytes; 'unknown': reading fails. */
  readonly content: 'zero' | 'plain' | 'unknown' | ComputeFunction<undefined>;
  /** In the file. */
  readonly place: number;
  readonly storedBytes: number;
}

/** Which chunk a byte of the disk is in. */
export interface ChunkTable {
  /** Undefined: its entry is not in memory. */
  find(offset: number): Chunk | undefined;
  load(offset: number): Promise<void>;
}

/** A disk that is kept in chunks, each compressed by itself. */
export class ChunkedMap extends ReadOnlyMap {
  readonly #table: ChunkTable;
  readonly #compute: HostCompute;
  /** Expanded chunks by their offset, that used last at the end. */
  readonly #kept = new Map<number, { lengthBytes: number; bytes: Promise<Uint8Array> }>();
  #keptBytes = 0;
  readonly #large = new AsyncMutex();

  constructor(file: ChildIo, unitBytes: number, table: ChunkTable, compute: HostCompute) {
    super(file, unitBytes);
    this.#table = table;
    this.#compute = compute;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const chunk = this.#table.find(offset);
    if (!chunk) return false;
    const from = offset - chunk.offset;
    const isPlain = chunk.content === 'plain' && this.#isInFile(chunk);
    out.kind = chunk.content === 'zero' ? 'zero' : 'data';
    out.lengthBytes = Math.min(lengthBytes, chunk.lengthBytes - from);
    out.child = out.kind === 'data' ? this.events : undefined;
    out.hostOffset = isPlain ? chunk.place + from : -1;
    out.plain = isPlain;
    out.writable = false;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    while (!this.tryMap(offset, lengthBytes, out)) await this.#table.load(offset);
  }

  #isInFile({ place, storedBytes }: Chunk): boolean {
    return place + storedBytes <= this.events.lengthBytes;
  }

  /** Of one chunk. Errors: corrupt, io. */
  async readSpecial(_mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    let chunk = this.#table.find(offset);
    for (; !chunk; chunk = this.#table.find(offset)) await this.#table.load(offset);
    const bytes = await this.#expanded(chunk);
    const from = offset - chunk.offset;
    buffer.set(bytes.subarray(from, from + buffer.length));
  }

  #expanded(chunk: Chunk): Promise<Uint8Array> {
    const { offset, lengthBytes } = chunk;
    const known = this.#kept.get(offset);
    const kept = known ?? { lengthBytes, bytes: this.#expand(chunk) };
    this.#kept.delete(offset);
    this.#kept.set(offset, kept);
    if (!known) {
      this.#keptBytes += lengthBytes;
      kept.bytes.catch(() => this.#drop(offset, kept));
      for (const [first, oldest] of this.#kept) {
        if (this.#keptBytes <= KEPT_BYTES || first === offset) break;
        this.#drop(first, oldest);
      }
    }
    return kept.bytes;
  }

  #drop(offset: number, kept: { lengthBytes: number }): void {
    if (this.#kept.get(offset) !== kept) return;
    this.#kept.delete(offset);
    this.#keptBytes -= kept.lengthBytes;
  }

  #expand(chunk: Chunk): Promise<Uint8Array> {
    if (chunk.lengthBytes <= LARGE_BYTES) return this.#run(chunk);
    return this.#large.run(() => this.#run(chunk));
  }

  async #run(chunk: Chunk): Promise<Uint8Array> {
    const { content, lengthBytes, offset, place, storedBytes } = chunk;
    if (typeof content === 'string') {
      if (content === 'unknown') throw errnoError('EIO', undefined, { offset });
      throw outsideFile('A chunk', place);
    }
    if (!this.#isInFile(chunk)) throw outsideFile('A chunk', place);
    const input = await readBytes(this.events, place, storedBytes);
    const output = Buffer.alloc(lengthBytes);
    const task = { function: content, input, output, parameters: undefined };
    const now = this.#compute.tryRun(task);
    const filled = now >= 0 ? now : await this.#compute.run(task, { user: this });
    if (filled !== lengthBytes) throw errnoError('EIO', undefined, { offset });
    return output;
  }
}
