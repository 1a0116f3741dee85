import fs from 'node:fs';
import { errnoError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import { nodeError } from './call-error.js';

/** One read and one write: long enough that threads seldom wait for the event loop. */
const STEP_BYTES = 2 * MiB;

/** An open file, and where in it. */
interface Place {
  readonly fd: number;
  readonly path: string;
  readonly position: number;
}

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

/** Reads and writes by turns, in the pool; answers the bytes copied, fewer at the source's end. */
export async function copyThroughMemory(
  source: Place,
  target: Place,
  lengthBytes: number,
  buffers: CopyBuffers,
): Promise<number> {
  const buffer = buffers.take();
  for (let done = 0; ;) {
    const got = await move(
      fs.read,
      source,
      done,
      buffer.subarray(0, Math.min(STEP_BYTES, lengthBytes - done)),
    );
    for (let put = 0; put < got;) {
      const wrote = await move(fs.write, target, done + put, buffer.subarray(put, got));
      if (wrote === 0) throw errnoError('EIO', undefined, { path: target.path });
      put += wrote;
    }
    done += got;
    if (done < lengthBytes && got > 0) continue;
    // Not after a failure: the kernel may still have that one.
    buffers.giveBack(buffer);
    return done;
  }
}

/** fs.read and fs.write in their one common form. */
type Call = (
  fd: number,
  buffer: Uint8Array,
  offset: number,
  length: number,
  position: number,
  callback: (error: Error | null, bytes: number) => void,
) => void;

function move(call: Call, { fd, path, position }: Place, done: number, buffer: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    const offset = position + done;
    const ended = (error: Error | null, bytes: number): void => {
      if (error) reject(nodeError(error, undefined, { path, offset }));
      else resolve(bytes);
    };
    call(fd, buffer, 0, buffer.length, offset, ended);
  });
}
