import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { crc32 } from '../../codec/checksum.js';

/**
 * What a machine's state is sent in. Each end opens with 12 bytes, "LIVEMOVE" and the version, and then sends frames:
 * u32 length of the payload, u16 type, u16 zero, payload, u32 CRC-32 of all before it. Integers are big-endian.
 * docs/MIGRATION.md has the messages.
 */

export const OPENING_BYTES = 12;
export const STREAM_VERSION = 1;
export const MAX_PAYLOAD_BYTES = 4 * MiB;
const MAGIC = Buffer.from('LIVEMOVE', 'latin1');
/** A stream of QEMU begins so (its docs/devel/migration). */
const QEMU_MAGIC = Buffer.from('QEVM', 'latin1');
const HEADER_BYTES = 8;
const CHECKSUM_BYTES = 4;

export interface Frame {
  readonly type: number;
  readonly payload: Buffer;
}

export function opening(): Buffer {
  const bytes = Buffer.alloc(OPENING_BYTES);
  MAGIC.copy(bytes);
  bytes.writeUInt32BE(STREAM_VERSION, MAGIC.length);
  return bytes;
}

export function encodeFrame({ type, payload }: Frame): Buffer {
  assert(payload.length <= MAX_PAYLOAD_BYTES, () => `a frame of ${payload.length} bytes`);
  const bytes = Buffer.alloc(HEADER_BYTES + payload.length + CHECKSUM_BYTES);
  bytes.writeUInt32BE(payload.length, 0);
  bytes.writeUInt16BE(type, 4);
  payload.copy(bytes, HEADER_BYTES);
  const end = HEADER_BYTES + payload.length;
  bytes.writeUInt32BE(crc32(bytes.subarray(0, end)), end);
  return bytes;
}

/** Takes a stream apart, however it is cut. Errors: kind corrupt or unsupported; after one it is of no use. */
export class FrameReader {
  #bytes: Buffer = Buffer.alloc(0);
  #isOpen = false;

  push(chunk: Buffer): void {
    this.#bytes = this.#bytes.length === 0 ? chunk : Buffer.concat([this.#bytes, chunk]);
  }

  /** Whether the other end has said anything. */
  get isSilent(): boolean {
    return !this.#isOpen && this.#bytes.length === 0;
  }

  /** The stream may end here. */
  get isBetween(): boolean {
    return this.#isOpen && this.#bytes.length === 0;
  }

  /** Whether the opening is there. Errors: what has come is none. */
  takeOpening(): boolean {
    if (this.#isOpen) return true;
    checkOpening(this.#bytes);
    if (this.#bytes.length < OPENING_BYTES) return false;
    this.#bytes = this.#bytes.subarray(OPENING_BYTES);
    return (this.#isOpen = true);
  }

  /** The next frame, once all of it is there. */
  next(): Frame | undefined {
    if (!this.takeOpening() || this.#bytes.length < HEADER_BYTES) return undefined;
    const lengthBytes = this.#bytes.readUInt32BE(0);
    if (lengthBytes > MAX_PAYLOAD_BYTES || this.#bytes.readUInt16BE(6) !== 0)
      throw new BlockError('corrupt', 'The migration stream is damaged: this is no frame');
    const end = HEADER_BYTES + lengthBytes;
    if (this.#bytes.length < end + CHECKSUM_BYTES) return undefined;
    if (crc32(this.#bytes.subarray(0, end)) !== this.#bytes.readUInt32BE(end))
      throw new BlockError('corrupt', 'The migration stream is damaged: a checksum is wrong');
    const frame = {
      type: this.#bytes.readUInt16BE(4),
      payload: Buffer.from(this.#bytes.subarray(HEADER_BYTES, end)),
    };
    this.#bytes = this.#bytes.subarray(end + CHECKSUM_BYTES);
    return frame;
  }
}

function checkOpening(bytes: Buffer): void {
  const startsWith = (magic: Buffer): boolean => {
    const there = Math.min(magic.length, bytes.length);
    return bytes.subarray(0, there).equals(magic.subarray(0, there));
  };
  if (bytes.length >= QEMU_MAGIC.length && startsWith(QEMU_MAGIC))
    throw new BlockError('unsupported', 'This is a migration stream of QEMU; livedisk takes only its own');
  if (!startsWith(MAGIC) && !(bytes.length < QEMU_MAGIC.length && startsWith(QEMU_MAGIC)))
    throw new BlockError('invalid', 'Not a migration stream');
  if (bytes.length < OPENING_BYTES) return;
  const version = bytes.readUInt32BE(MAGIC.length);
  if (version !== STREAM_VERSION)
    throw new BlockError(
      'unsupported',
      `The migration stream has version ${version}; this livedisk knows version ${STREAM_VERSION}`,
    );
}
