import { assert } from '../../base/assert.js';
import { divideRoundUp } from '../../base/align.js';
import { DirtyBitmap, type Stretch } from '../../block/dirty-bitmap.js';
import { SHA256_BYTES, sha256Chunks } from '../../codec/checksum.js';
import type { HostCompute } from '../../host/compute.js';

/** Chunks whose digests lie in one piece of memory, which is taken when one of them holds data. */
const PAGE_CHUNKS = 64;
const PAGE_BYTES = PAGE_CHUNKS * SHA256_BYTES;

/**
 * SHA-256 of what a copy's target is to hold, chunk by chunk: made of what is written there while it is in memory. Chunks
 * of zeroes cost no memory but a bit. Memory: 32 bytes a chunk of data.
 */
export class ChunkHashes {
  readonly sizeBytes: number;
  readonly chunkBytes: number;
  /** Chunks of which it is known what they are to hold. */
  readonly known: DirtyBitmap;
  readonly #zeroes: DirtyBitmap;
  /** Known, and not read back since. */
  readonly unchecked: DirtyBitmap;
  readonly #pages = new Map<number, Buffer>();
  readonly #compute: HostCompute;
  /** Of a chunk of zeroes, by its length: the last one of the disk may be shorter. */
  readonly #zeroDigests = new Map<number, Buffer>();

  /** Errors: limit, when so many chunks would not fit into memory. */
  constructor(compute: HostCompute, sizeBytes: number, chunkBytes: number) {
    this.#compute = compute;
    this.sizeBytes = sizeBytes;
    this.chunkBytes = chunkBytes;
    this.known = new DirtyBitmap(sizeBytes, chunkBytes);
    this.#zeroes = new DirtyBitmap(sizeBytes, chunkBytes);
    this.unchecked = new DirtyBitmap(sizeBytes, chunkBytes);
  }

  /** All that it knows, for goOnFrom() in another process. */
  get parts(): Uint8Array[] {
    const bitmaps = [this.known, this.#zeroes, this.unchecked].map((bitmap) => bitmap.bytes());
    return [
      ...bitmaps,
      Buffer.concat([...this.#pagesInUse()].flatMap((number) => this.#pages.get(number) ?? [])),
    ];
  }

  /** One that is new knows what another one knew, of the same disk in the same chunks. */
  goOnFrom([known, zeroes, unchecked, digests = new Uint8Array(0)]: readonly Uint8Array[]): void {
    if (known) this.known.deserialise(0, known);
    if (zeroes) this.#zeroes.deserialise(0, zeroes);
    if (unchecked) this.unchecked.deserialise(0, unchecked);
    let at = 0;
    for (const number of this.#pagesInUse()) {
      this.#pages.set(number, Buffer.from(digests.subarray(at, at + PAGE_BYTES)));
      at += PAGE_BYTES;
    }
    assert(at === digests.length, () => `digests of ${digests.length} bytes for pages of ${at}`);
  }

  /** Those with the digest of a chunk of data, in order. */
  *#pagesInUse(): Generator<number> {
    let next = 0;
    for (let at = this.next(0); at; at = this.next(at.offset + at.lengthBytes)) {
      if (at.isZero) continue;
      next = Math.max(next, this.#pageOf(at.offset));
      while (next <= this.#pageOf(at.offset + at.lengthBytes - 1)) yield next++;
    }
  }

  #pageOf(offset: number): number {
    return Math.floor(offset / this.chunkBytes / PAGE_CHUNKS);
  }

  get chunks(): number {
    return divideRoundUp(this.sizeBytes, this.chunkBytes);
  }

  /** The digests of a stretch of whole chunks, one behind the other. */
  async digestsOf(buffer: Uint8Array): Promise<Buffer> {
    const output = Buffer.alloc(divideRoundUp(buffer.length, this.chunkBytes) * SHA256_BYTES);
    const { chunkBytes } = this;
    const task = { function: sha256Chunks, input: buffer, output, parameters: { chunkBytes } };
    if (this.#compute.tryRun(task) < 0) await this.#compute.run(task, { user: this });
    return output;
  }

  /** This is what the target is to hold there: whole chunks. */
  async data(offset: number, buffer: Uint8Array): Promise<void> {
    this.#assertWhole(offset, buffer.length);
    const digests = await this.digestsOf(buffer);
    const first = offset / this.chunkBytes;
    for (let i = 0; i * SHA256_BYTES < digests.length; i++)
      this.#set(first + i, digests.subarray(i * SHA256_BYTES, (i + 1) * SHA256_BYTES));
    this.known.set(offset, buffer.length);
    this.unchecked.set(offset, buffer.length);
  }

  zeroes(offset: number, lengthBytes: number): void {
    this.#assertWhole(offset, lengthBytes);
    for (const bitmap of [this.known, this.#zeroes, this.unchecked]) bitmap.set(offset, lengthBytes);
  }

  /** As told by digestAt() once: what a manifest says. */
  add(index: number, digest: Uint8Array): void {
    this.#set(index, digest);
    this.known.set(index * this.chunkBytes, 1);
    this.unchecked.set(index * this.chunkBytes, 1);
  }

  #set(index: number, digest: Uint8Array): void {
    const offset = index * this.chunkBytes;
    if (this.#zeroDigest(this.lengthAt(index)).equals(digest)) {
      this.#zeroes.set(offset, 1);
      return;
    }
    this.#zeroes.reset(offset, 1);
    const number = Math.floor(index / PAGE_CHUNKS);
    let page = this.#pages.get(number);
    if (!page) {
      page = Buffer.alloc(PAGE_BYTES);
      this.#pages.set(number, page);
    }
    page.set(digest, (index % PAGE_CHUNKS) * SHA256_BYTES);
  }

  #assertWhole(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    const isWhole = offset % this.chunkBytes === 0 && (end % this.chunkBytes === 0 || end === this.sizeBytes);
    assert(isWhole, () => `${lengthBytes} bytes at ${offset} are no whole chunks of ${this.chunkBytes}`);
  }

  /** Of the last chunk it may be less than of others. */
  lengthAt(index: number): number {
    return Math.min(this.chunkBytes, this.sizeBytes - index * this.chunkBytes);
  }

  isZero(offset: number): boolean {
    return this.known.isDirty(offset) && this.#zeroes.isDirty(offset);
  }

  /** The first stretch from an offset on that is known, and either all zeroes or all data. */
  next(offset: number, of: DirtyBitmap = this.known): (Stretch & { isZero: boolean }) | undefined {
    const stretch = offset < this.sizeBytes ? of.nextDirty(offset) : undefined;
    if (!stretch) return undefined;
    const end = stretch.offset + stretch.lengthBytes;
    const isZero = this.#zeroes.isDirty(stretch.offset);
    const other = isZero
      ? this.#zeroes.nextClean(stretch.offset, end)
      : (this.#zeroes.nextDirty(stretch.offset, end)?.offset ?? end);
    return { offset: stretch.offset, lengthBytes: other - stretch.offset, isZero };
  }

  /** What a chunk is to hold; undefined: nobody knows. */
  digestAt(index: number): Buffer | undefined {
    const offset = index * this.chunkBytes;
    if (!this.known.isDirty(offset)) return undefined;
    if (this.#zeroes.isDirty(offset)) return this.#zeroDigest(this.lengthAt(index));
    const page = this.#pages.get(Math.floor(index / PAGE_CHUNKS));
    const at = (index % PAGE_CHUNKS) * SHA256_BYTES;
    return page?.subarray(at, at + SHA256_BYTES);
  }

  #zeroDigest(lengthBytes: number): Buffer {
    let digest = this.#zeroDigests.get(lengthBytes);
    if (!digest) {
      digest = Buffer.alloc(SHA256_BYTES);
      sha256Chunks.run(Buffer.alloc(lengthBytes), digest, { chunkBytes: lengthBytes });
      this.#zeroDigests.set(lengthBytes, digest);
    }
    return digest;
  }

  /** Where a stretch of whole chunks, as it was read, differs from what is known: the offsets of those chunks. */
  async differing(offset: number, buffer: Uint8Array): Promise<number[]> {
    this.#assertWhole(offset, buffer.length);
    const digests = await this.digestsOf(buffer);
    const first = offset / this.chunkBytes;
    const found: number[] = [];
    for (let i = 0; i * SHA256_BYTES < digests.length; i++) {
      const digest = digests.subarray(i * SHA256_BYTES, (i + 1) * SHA256_BYTES);
      const known = this.digestAt(first + i);
      if (known && !known.equals(digest)) found.push((first + i) * this.chunkBytes);
    }
    return found;
  }
}
