import { assert } from '../../base/assert.js';
import { type Deferred, deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';

/** What a peer may send ahead of being asked. */
const MAX_AHEAD_BYTES = MiB;

/** What is wrong when no more comes, given what was to be read. */
export type EndOfData = (what: string) => BlockError;

/** Turns chunks that come when they like into messages of the length that one reader asks for. */
export class ByteReader {
  #chunks: Buffer[] = [];
  #bufferedBytes = 0;
  #wanted: { lengthBytes: number; what: string; result: Deferred<Buffer> } | undefined;
  #error: BlockError | EndOfData | undefined;

  /** Copies the chunk. */
  push(chunk: Buffer): void {
    if (this.#error) return;
    if (this.#bufferedBytes + chunk.length > MAX_AHEAD_BYTES + (this.#wanted?.lengthBytes ?? 0)) {
      this.fail(new BlockError('corrupt', 'NBD server sends more than it was asked for'));
      return;
    }
    this.#chunks.push(Buffer.from(chunk));
    this.#bufferedBytes += chunk.length;
    const wanted = this.#wanted;
    if (!wanted || this.#bufferedBytes < wanted.lengthBytes) return;
    this.#wanted = undefined;
    wanted.result.resolve(this.#cut(wanted.lengthBytes));
  }

  /** The next `lengthBytes`, which are called `what`. Errors: what fail() was given. */
  take(lengthBytes: number, what = 'data'): Promise<Buffer> {
    assert(!this.#wanted, 'two readers of one connection');
    if (this.#bufferedBytes >= lengthBytes && !this.#error) return Promise.resolve(this.#cut(lengthBytes));
    if (this.#error) return Promise.reject(told(this.#error, what));
    this.#wanted = { lengthBytes, what, result: deferred<Buffer>() };
    return this.#wanted.result.promise;
  }

  /** Throws what fail() was given. */
  check(): void {
    if (this.#error) throw told(this.#error, 'data');
  }

  /** What was received and not taken; the reader is empty then. */
  rest(): Buffer {
    return this.#cut(this.#bufferedBytes);
  }

  /** The first error stays. */
  fail(error: BlockError | EndOfData): void {
    this.#error ??= error;
    this.#wanted?.result.reject(told(this.#error, this.#wanted.what));
    this.#wanted = undefined;
  }

  #cut(lengthBytes: number): Buffer {
    const all =
      this.#chunks.length === 1 ? (this.#chunks[0] ?? Buffer.alloc(0)) : Buffer.concat(this.#chunks);
    const rest = all.subarray(lengthBytes);
    this.#chunks = rest.length > 0 ? [rest] : [];
    this.#bufferedBytes = rest.length;
    return all.subarray(0, lengthBytes);
  }
}

function told(error: BlockError | EndOfData, what: string): BlockError {
  return error instanceof BlockError ? error : error(what);
}
