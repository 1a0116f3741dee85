import { posix } from 'node:path';
import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { readBuffer, writeBuffer } from '../../host/whole-buffers.js';
import type { Host, HostFile } from '../../host/host.js';

const NAME_BYTES = 8;

export interface BufferSize {
  readonly placeBytes: number;
  readonly mostBytes: number;
}

/**
 * A file without a name that has places of one size, and never more of them than its bound allows: what is left of it
 * when the program dies is nothing.
 */
export class BufferFile {
  readonly #file: HostFile;
  readonly #placeBytes: number;
  readonly #mostPlaces: number;
  readonly #free: number[] = [];
  #places = 0;

  private constructor(file: HostFile, { placeBytes, mostBytes }: BufferSize) {
    this.#file = file;
    this.#placeBytes = placeBytes;
    this.#mostPlaces = Math.floor(mostBytes / placeBytes);
  }

  /** Errors: those of files. */
  static async create({ files, random }: Host, folder: string, size: BufferSize): Promise<BufferFile> {
    const path = posix.join(folder, `.livedisk-fleecing-${random.bytes(NAME_BYTES).toString('hex')}`);
    const file = await files.open(path, { write: true, create: true, exclusive: true, isPrivate: true });
    try {
      await files.unlink(path);
    } catch (error) {
      await file.close().catch(() => undefined);
      throw error;
    }
    return new BufferFile(file, size);
  }

  /** One that another process has open, with so many places of which `taken` are in use. Errors: those of files. */
  static async adopt(
    { files }: Host,
    folder: string,
    { size, fd, places, taken }: { size: BufferSize; fd: number; places: number; taken: ReadonlySet<number> },
  ): Promise<BufferFile> {
    const path = posix.join(folder, '.livedisk-fleecing');
    const adopted = new BufferFile(await files.open(path, { write: true, descriptor: fd }), size);
    adopted.#places = places;
    for (let place = places - 1; place >= 0; place--) if (!taken.has(place)) adopted.#free.push(place);
    return adopted;
  }

  /** The open file. Errors: unsupported, where this host has no descriptors. */
  get fd(): number {
    const { descriptor } = this.#file;
    if (descriptor === undefined) throw new BlockError('unsupported', 'This host passes no files');
    return descriptor;
  }

  /** All that it has had, in use or free again. */
  get places(): number {
    return this.#places;
  }

  /** Bytes that are taken. */
  get usedBytes(): number {
    return (this.#places - this.#free.length) * this.#placeBytes;
  }

  /** A place that nobody has; undefined: there is none. */
  take(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    return this.#places < this.#mostPlaces ? this.#places++ : undefined;
  }

  give(place: number): void {
    assert(place < this.#places, 'a place of the buffer that was never taken');
    this.#free.push(place);
  }

  /** Errors: those of files. */
  write(place: number, bytes: Buffer): Promise<void> {
    return writeBuffer(this.#file, place * this.#placeBytes, bytes);
  }

  /** Errors: those of files. */
  read(place: number, bytes: Buffer): Promise<void> {
    return readBuffer(this.#file, place * this.#placeBytes, bytes);
  }

  async close(): Promise<void> {
    await this.#file.close().catch(() => undefined);
  }
}

/** Its owner may have none of it. */
export function bufferIsFull(jobId: string, mostBytes: number): BlockError {
  const text = `The buffer of backup '${jobId}' is full: ${mostBytes} bytes, while its target has not kept up`;
  return new BlockError('no-space', text, { errno: 'ENOSPC' });
}
