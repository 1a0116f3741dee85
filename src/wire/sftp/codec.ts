import { BlockError } from '../../base/error.js';

/** SFTP version 3 (draft-ietf-secsh-filexfer-02), and OpenSSH's extensions (PROTOCOL, section 4). */
export const VERSION = 3;

export const Type = {
  init: 1,
  version: 2,
  open: 3,
  close: 4,
  read: 5,
  write: 6,
  fstat: 8,
  setStat: 10,
  remove: 13,
  status: 101,
  handle: 102,
  data: 103,
  attributes: 105,
  extended: 200,
  extendedReply: 201,
} as const;

export const OpenFlag = { read: 1, write: 2, create: 8, truncate: 16 } as const;
export const StatusCode = {
  ok: 0,
  endOfFile: 1,
  noSuchFile: 2,
  permissionDenied: 3,
  unsupported: 8,
} as const;
const AttributeFlag = { size: 1, permissions: 4 } as const;

/** Longest packet that is taken: OpenSSH's limit. */
export const MAX_PACKET_BYTES = 256 * 1024;
/** So much data every server sends and takes at once (section 3). */
export const SAFE_DATA_BYTES = 32 * 1024;
/** What a packet has beside data, at most. */
export const PACKET_HEAD_BYTES = 1024;

/** Puts a packet together. */
export class PacketWriter {
  readonly #parts: Uint8Array[] = [];

  constructor(type: number) {
    this.#parts.push(Buffer.of(type));
  }

  uint32(value: number): this {
    const part = Buffer.alloc(4);
    part.writeUInt32BE(value);
    this.#parts.push(part);
    return this;
  }

  uint64(value: number): this {
    const part = Buffer.alloc(8);
    part.writeBigUInt64BE(BigInt(value));
    this.#parts.push(part);
    return this;
  }

  string(value: string | Uint8Array): this {
    const bytes = typeof value === 'string' ? Buffer.from(value) : value;
    this.uint32(bytes.length);
    this.#parts.push(bytes);
    return this;
  }

  size(value: number): this {
    return this.uint32(AttributeFlag.size).uint64(value);
  }

  permissions(mode: number): this {
    return this.uint32(AttributeFlag.permissions).uint32(mode);
  }

  /** With its length before it. */
  finish(): Buffer {
    const lengthBytes = this.#parts.reduce((sum, { length }) => sum + length, 0);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(lengthBytes);
    return Buffer.concat([head, ...this.#parts]);
  }
}

/** Takes a packet apart. Errors: corrupt where it ends too early. */
export class PacketReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get isAtEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  uint8(): number {
    return this.#take(1).readUInt8();
  }

  uint32(): number {
    return this.#take(4).readUInt32BE();
  }

  /** Errors: corrupt from 2^53 on. */
  uint64(): number {
    const value = this.#take(8).readBigUInt64BE();
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw malformed();
    return Number(value);
  }

  string(): Buffer {
    return this.#take(this.uint32());
  }

  /** The size that attributes say; undefined: they say none. */
  size(): number | undefined {
    const flags = this.uint32();
    return flags % 2 === 1 ? this.uint64() : undefined;
  }

  #take(lengthBytes: number): Buffer {
    const start = this.#at;
    if (lengthBytes > this.#bytes.length - start) throw malformed();
    this.#at = start + lengthBytes;
    return this.#bytes.subarray(start, this.#at);
  }
}

export function malformed(): BlockError {
  return new BlockError('corrupt', 'The SFTP server sends what is no SFTP');
}
