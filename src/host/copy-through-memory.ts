import { MiB } from '../base/limits.js';

/** One read and one write: long enough that threads seldom wait for the event loop. */
const STEP_BYTES = 2 * MiB;

/** Moves bytes at so many from the beginning of the copy; answers how many, 0 at the end of what is read. */
type Move = (done: number, buffer: Uint8Array) => Promise<number>;

/** What copies have used and others may use. */
export class CopyBuffers {
  readonly #free: Buffer[] = [];

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(STEP_BYTES);
  }

  giveBack(buffer: Buffer): void {
    this.#free.push(buffer);
  }
}

/** Reads and writes by turns; answers the bytes copied, fewer at the end of what is read. */
export async function copyThroughMemory(
  read: Move,
  write: Move,
  lengthBytes: number,
  buffers: CopyBuffers,
): Promise<number> {
  const buffer = buffers.take();
  for (let done = 0; ;) {
    const got = await read(done, buffer.subarray(0, Math.min(STEP_BYTES, lengthBytes - done)));
    for (let put = 0; put < got;) put += await write(done + put, buffer.subarray(put, got));
    done += got;
    if (done < lengthBytes && got > 0) continue;
    // Not after a failure: the kernel may still have that one.
    buffers.giveBack(buffer);
    return done;
  }
}
