import { BlockError } from '../../base/error.js';
import { MAX_NBD_STRING_BYTES } from '../../base/limits.js';
import * as nbd from './constants.js';

const WORD = 2 ** 32;

/**
 * A 64-bit field as a number; exact below 2^53. Above, it is only good for finding that it lies past the end of
 * every export (rounding keeps it at 2^53 or more).
 */
export function readUint64Rounded(buffer: Buffer, at: number): number {
  return buffer.readUInt32BE(at) * WORD + buffer.readUInt32BE(at + 4);
}

/** Errors: kind corrupt for 2^53 and more. */
export function readUint53(buffer: Buffer, at: number, what: string): number {
  const value = readUint64Rounded(buffer, at);
  if (Number.isSafeInteger(value)) return value;
  throw new BlockError('corrupt', `NBD ${what} is too large`);
}

export function writeUint64(buffer: Buffer, at: number, value: number): void {
  buffer.writeUInt32BE(Math.floor(value / WORD), at);
  buffer.writeUInt32BE(value % WORD, at + 4);
}

export function encodeGreeting(flags: number): Buffer {
  const out = Buffer.alloc(nbd.GREETING_BYTES);
  out.writeUInt32BE(nbd.MAGIC_HIGH, 0);
  out.writeUInt32BE(nbd.MAGIC_LOW, 4);
  out.writeUInt32BE(nbd.OPTION_MAGIC_HIGH, 8);
  out.writeUInt32BE(nbd.OPTION_MAGIC_LOW, 12);
  out.writeUInt16BE(flags, 16);
  return out;
}

export interface OptionHeader {
  option: number;
  lengthBytes: number;
}

export function encodeOption(option: number, payload: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(nbd.OPTION_REQUEST_BYTES + payload.length);
  out.writeUInt32BE(nbd.OPTION_MAGIC_HIGH, 0);
  out.writeUInt32BE(nbd.OPTION_MAGIC_LOW, 4);
  out.writeUInt32BE(option, 8);
  out.writeUInt32BE(payload.length, 12);
  out.set(payload, nbd.OPTION_REQUEST_BYTES);
  return out;
}

/** Undefined: bad magic. */
export function decodeOption(bytes: Buffer): OptionHeader | undefined {
  const isOption =
    bytes.readUInt32BE(0) === nbd.OPTION_MAGIC_HIGH && bytes.readUInt32BE(4) === nbd.OPTION_MAGIC_LOW;
  return isOption ? { option: bytes.readUInt32BE(8), lengthBytes: bytes.readUInt32BE(12) } : undefined;
}

export interface OptionReplyHeader {
  option: number;
  type: number;
  lengthBytes: number;
}

export function encodeOptionReply(option: number, type: number, payload: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(nbd.OPTION_REPLY_BYTES + payload.length);
  out.writeUInt32BE(nbd.OPTION_REPLY_MAGIC_HIGH, 0);
  out.writeUInt32BE(nbd.OPTION_REPLY_MAGIC_LOW, 4);
  out.writeUInt32BE(option, 8);
  out.writeUInt32BE(type, 12);
  out.writeUInt32BE(payload.length, 16);
  out.set(payload, nbd.OPTION_REPLY_BYTES);
  return out;
}

/** Undefined: bad magic. */
export function decodeOptionReply(bytes: Buffer): OptionReplyHeader | undefined {
  const isReply =
    bytes.readUInt32BE(0) === nbd.OPTION_REPLY_MAGIC_HIGH &&
    bytes.readUInt32BE(4) === nbd.OPTION_REPLY_MAGIC_LOW;
  if (!isReply) return undefined;
  return {
    option: bytes.readUInt32BE(8),
    type: bytes.readUInt32BE(12),
    lengthBytes: bytes.readUInt32BE(16),
  };
}

/** Payload of INFO and GO. */
export interface InfoRequest {
  name: string;
  infos: number[];
}

export function encodeInfoRequest({ name, infos }: InfoRequest): Buffer {
  const bytes = Buffer.from(name);
  const out = Buffer.allocUnsafe(4 + bytes.length + 2 + 2 * infos.length);
  out.writeUInt32BE(bytes.length, 0);
  bytes.copy(out, 4);
  out.writeUInt16BE(infos.length, 4 + bytes.length);
  infos.forEach((info, i) => out.writeUInt16BE(info, 6 + bytes.length + 2 * i));
  return out;
}

/** A reader over an option's payload, with QEMU's complaints. */
class PayloadReader {
  readonly #bytes: Buffer;
  readonly #what: string;
  #at = 0;

  constructor(bytes: Buffer, what: string) {
    this.#bytes = bytes;
    this.#what = what;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  uint16(): number {
    this.#need(2);
    this.#at += 2;
    return this.#bytes.readUInt16BE(this.#at - 2);
  }

  uint32(): number {
    this.#need(4);
    this.#at += 4;
    return this.#bytes.readUInt32BE(this.#at - 4);
  }

  /** A 32-bit length and that many bytes of UTF-8. */
  string(): string {
    const lengthBytes = this.uint32();
    if (lengthBytes > MAX_NBD_STRING_BYTES)
      throw new BlockError('invalid', `Invalid name length: ${lengthBytes}`);
    this.#need(lengthBytes);
    this.#at += lengthBytes;
    return this.#bytes.toString('utf8', this.#at - lengthBytes, this.#at);
  }

  end(): void {
    if (this.left !== 0) this.#inconsistent();
  }

  #need(bytes: number): void {
    if (this.left < bytes) this.#inconsistent();
  }

  #inconsistent(): never {
    throw new BlockError('invalid', `Inconsistent lengths in option ${this.#what}`);
  }
}

/** Errors: kind invalid. */
export function decodeInfoRequest(payload: Buffer, what: string): InfoRequest {
  const reader = new PayloadReader(payload, what);
  const name = reader.string();
  const count = reader.uint16();
  const infos: number[] = [];
  for (let i = 0; i < count; i++) infos.push(reader.uint16());
  reader.end();
  return { name, infos };
}

/** Payload of LIST_META_CONTEXT and SET_META_CONTEXT. */
export interface MetaContextRequest {
  name: string;
  queries: string[];
}

export function encodeMetaContextRequest({ name, queries }: MetaContextRequest): Buffer {
  const parts: Buffer[] = [];
  const string = (text: string): void => {
    const bytes = Buffer.from(text);
    parts.push(uint32(bytes.length), bytes);
  };
  string(name);
  parts.push(uint32(queries.length));
  queries.forEach(string);
  return Buffer.concat(parts);
}

/** Errors: kind invalid. */
export function decodeMetaContextRequest(payload: Buffer, what: string): MetaContextRequest {
  const reader = new PayloadReader(payload, what);
  const name = reader.string();
  const count = reader.uint32();
  const queries: string[] = [];
  for (let i = 0; i < count; i++) queries.push(reader.string());
  reader.end();
  return { name, queries };
}

export function uint32(value: number): Buffer {
  const out = Buffer.allocUnsafe(4);
  out.writeUInt32BE(value, 0);
  return out;
}

/** A request of the transmission phase; the cookie comes back in the reply as it was. */
export interface Request {
  flags: number;
  command: number;
  cookieHigh: number;
  cookieLow: number;
  /** Rounded above 2^53, see readUint64Rounded. */
  offset: number;
  lengthBytes: number;
}

export function encodeRequest(out: Buffer, at: number, request: Request): void {
  out.writeUInt32BE(nbd.REQUEST_MAGIC, at);
  out.writeUInt16BE(request.flags, at + 4);
  out.writeUInt16BE(request.command, at + 6);
  out.writeUInt32BE(request.cookieHigh, at + 8);
  out.writeUInt32BE(request.cookieLow, at + 12);
  writeUint64(out, at + 16, request.offset);
  out.writeUInt32BE(request.lengthBytes, at + 24);
}

/** Fills `into`; false: bad magic. */
export function decodeRequest(bytes: Buffer, at: number, into: Request): boolean {
  if (bytes.readUInt32BE(at) !== nbd.REQUEST_MAGIC) return false;
  into.flags = bytes.readUInt16BE(at + 4);
  into.command = bytes.readUInt16BE(at + 6);
  into.cookieHigh = bytes.readUInt32BE(at + 8);
  into.cookieLow = bytes.readUInt32BE(at + 12);
  into.offset = readUint64Rounded(bytes, at + 16);
  into.lengthBytes = bytes.readUInt32BE(at + 24);
  return true;
}

export function newRequest(): Request {
  return { flags: 0, command: 0, cookieHigh: 0, cookieLow: 0, offset: 0, lengthBytes: 0 };
}

/** Whom a reply answers. */
export interface Cookie {
  readonly cookieHigh: number;
  readonly cookieLow: number;
}

export function encodeSimpleReply(out: Buffer, at: number, error: number, cookie: Cookie): void {
  out.writeUInt32BE(nbd.SIMPLE_REPLY_MAGIC, at);
  out.writeUInt32BE(error, at + 4);
  out.writeUInt32BE(cookie.cookieHigh, at + 8);
  out.writeUInt32BE(cookie.cookieLow, at + 12);
}

/** The header of a chunk; its payload of lengthBytes follows. */
export function encodeChunkHeader(
  out: Buffer,
  at: number,
  flags: number,
  type: number,
  cookie: Cookie,
  lengthBytes: number,
): void {
  out.writeUInt32BE(nbd.STRUCTURED_REPLY_MAGIC, at);
  out.writeUInt16BE(flags, at + 4);
  out.writeUInt16BE(type, at + 6);
  out.writeUInt32BE(cookie.cookieHigh, at + 8);
  out.writeUInt32BE(cookie.cookieLow, at + 12);
  out.writeUInt32BE(lengthBytes, at + 16);
}

/** A reply's header on the client's side. */
export interface ReplyHeader {
  isStructured: boolean;
  /** Simple replies. */
  error: number;
  /** Structured ones. */
  flags: number;
  type: number;
  lengthBytes: number;
  cookieHigh: number;
  cookieLow: number;
}

/** Bytes of the header that begins with this magic; 0 when there is none such. */
export function replyHeaderBytes(magic: number): number {
  if (magic === nbd.SIMPLE_REPLY_MAGIC) return nbd.SIMPLE_REPLY_BYTES;
  return magic === nbd.STRUCTURED_REPLY_MAGIC ? nbd.STRUCTURED_REPLY_BYTES : 0;
}

export function decodeReplyHeader(bytes: Buffer): ReplyHeader {
  const isStructured = bytes.readUInt32BE(0) === nbd.STRUCTURED_REPLY_MAGIC;
  return {
    isStructured,
    error: isStructured ? 0 : bytes.readUInt32BE(4),
    flags: isStructured ? bytes.readUInt16BE(4) : nbd.REPLY_FLAG_DONE,
    type: isStructured ? bytes.readUInt16BE(6) : nbd.ReplyType.none,
    lengthBytes: isStructured ? bytes.readUInt32BE(16) : 0,
    cookieHigh: bytes.readUInt32BE(8),
    cookieLow: bytes.readUInt32BE(12),
  };
}

export interface Extent {
  lengthBytes: number;
  /** AllocationState bits. */
  state: number;
}

export function encodeExtents(
  out: Buffer,
  at: number,
  contextId: number,
  extents: readonly Extent[],
): number {
  out.writeUInt32BE(contextId, at);
  extents.forEach((extent, i) => {
    out.writeUInt32BE(extent.lengthBytes, at + 4 + 8 * i);
    out.writeUInt32BE(extent.state, at + 8 + 8 * i);
  });
  return 4 + 8 * extents.length;
}

/** Errors: kind corrupt. */
export function decodeExtents(payload: Buffer): { contextId: number; extents: Extent[] } {
  if (payload.length < 12 || (payload.length - 4) % 8 !== 0)
    throw new BlockError('corrupt', 'Protocol error: invalid payload for NBD_REPLY_TYPE_BLOCK_STATUS');
  const extents: Extent[] = [];
  for (let at = 4; at < payload.length; at += 8) {
    const lengthBytes = payload.readUInt32BE(at);
    if (lengthBytes === 0)
      throw new BlockError('corrupt', 'Protocol error: server sent status chunk with zero length');
    extents.push({ lengthBytes, state: payload.readUInt32BE(at + 4) });
  }
  return { contextId: payload.readUInt32BE(0), extents };
}

/** The errno name of a wire error number; what is unknown is EINVAL, as the protocol says. */
export function errnoOfNbdError(error: number): string {
  const found = Object.entries(nbd.NbdError).find(([, value]) => value === error);
  return found ? found[0] : 'EINVAL';
}

const FROM_ERRNO: Record<string, number> = {
  EPERM: nbd.NbdError.EPERM,
  EROFS: nbd.NbdError.EPERM,
  EACCES: nbd.NbdError.EPERM,
  EIO: nbd.NbdError.EIO,
  ENOMEM: nbd.NbdError.ENOMEM,
  EDQUOT: nbd.NbdError.ENOSPC,
  EFBIG: nbd.NbdError.ENOSPC,
  ENOSPC: nbd.NbdError.ENOSPC,
  EOVERFLOW: nbd.NbdError.EOVERFLOW,
  ENOTSUP: nbd.NbdError.ENOTSUP,
  EOPNOTSUPP: nbd.NbdError.ENOTSUP,
  ESHUTDOWN: nbd.NbdError.ESHUTDOWN,
  EINVAL: nbd.NbdError.EINVAL,
};

/** The wire's number for an errno name; EIO for those that it has none for. */
export function nbdErrorOf(errno: string): number {
  return FROM_ERRNO[errno] ?? nbd.NbdError.EIO;
}
