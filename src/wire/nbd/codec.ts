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

/** What headers both sides use: plain ones and simple replies, structured replies, or extended headers both ways. */
export type HeaderStyle = 'simple' | 'structured' | 'extended';

export function requestBytes(style: HeaderStyle): number {
  return style === 'extended' ? nbd.EXTENDED_REQUEST_BYTES : nbd.REQUEST_BYTES;
}

/** Of a chunk's header; simple replies have no chunks. */
export function chunkHeaderBytes(style: HeaderStyle): number {
  return style === 'extended' ? nbd.EXTENDED_REPLY_BYTES : nbd.STRUCTURED_REPLY_BYTES;
}

/** What a reply says of the request that it answers: words of the request's own, which come back as they were. */
export interface RequestId {
  readonly cookieHigh: number;
  readonly cookieLow: number;
  /** The offset's words; only extended headers have them. */
  readonly offsetHigh: number;
  readonly offsetLow: number;
}

/** A request of the transmission phase. */
export interface Request extends RequestId {
  flags: number;
  command: number;
  cookieHigh: number;
  cookieLow: number;
  offsetHigh: number;
  offsetLow: number;
  /** Rounded above 2^53, see readUint64Rounded. */
  offset: number;
  /** Of the range; of the payload where extended headers have the flag payloadLength. Rounded as the offset is. */
  lengthBytes: number;
  /** The length's words as they came. */
  lengthHigh: number;
  lengthLow: number;
}

export type NewRequest = Omit<Request, 'offsetHigh' | 'offsetLow' | 'lengthHigh' | 'lengthLow'>;

export function encodeRequest(out: Buffer, at: number, request: NewRequest, style: HeaderStyle): void {
  const isExtended = style === 'extended';
  out.writeUInt32BE(isExtended ? nbd.EXTENDED_REQUEST_MAGIC : nbd.REQUEST_MAGIC, at);
  out.writeUInt16BE(request.flags, at + 4);
  out.writeUInt16BE(request.command, at + 6);
  out.writeUInt32BE(request.cookieHigh, at + 8);
  out.writeUInt32BE(request.cookieLow, at + 12);
  writeUint64(out, at + 16, request.offset);
  if (isExtended) writeUint64(out, at + 24, request.lengthBytes);
  else out.writeUInt32BE(request.lengthBytes, at + 24);
}

/** A request as it came. */
export function encodeReceived(request: Request, style: HeaderStyle): Buffer {
  const out = Buffer.alloc(requestBytes(style));
  encodeRequest(out, 0, { ...request, offset: 0, lengthBytes: 0 }, style);
  out.writeUInt32BE(request.offsetHigh, 16);
  out.writeUInt32BE(request.offsetLow, 20);
  if (style === 'extended') out.writeUInt32BE(request.lengthHigh, 24);
  out.writeUInt32BE(request.lengthLow, out.length - 4);
  return out;
}

/** Fills `into`; false: bad magic. */
export function decodeRequest(bytes: Buffer, at: number, into: Request, style: HeaderStyle): boolean {
  const isExtended = style === 'extended';
  const magic = isExtended ? nbd.EXTENDED_REQUEST_MAGIC : nbd.REQUEST_MAGIC;
  if (bytes.readUInt32BE(at) !== magic) return false;
  into.flags = bytes.readUInt16BE(at + 4);
  into.command = bytes.readUInt16BE(at + 6);
  into.cookieHigh = bytes.readUInt32BE(at + 8);
  into.cookieLow = bytes.readUInt32BE(at + 12);
  into.offsetHigh = bytes.readUInt32BE(at + 16);
  into.offsetLow = bytes.readUInt32BE(at + 20);
  into.offset = into.offsetHigh * WORD + into.offsetLow;
  into.lengthHigh = isExtended ? bytes.readUInt32BE(at + 24) : 0;
  into.lengthLow = bytes.readUInt32BE(isExtended ? at + 28 : at + 24);
  into.lengthBytes = into.lengthHigh * WORD + into.lengthLow;
  return true;
}

export function newRequest(): Request {
  const words = { cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0, lengthHigh: 0, lengthLow: 0 };
  return { flags: 0, command: 0, ...words, offset: 0, lengthBytes: 0 };
}

export function encodeSimpleReply(out: Buffer, at: number, error: number, request: RequestId): void {
  out.writeUInt32BE(nbd.SIMPLE_REPLY_MAGIC, at);
  out.writeUInt32BE(error, at + 4);
  out.writeUInt32BE(request.cookieHigh, at + 8);
  out.writeUInt32BE(request.cookieLow, at + 12);
}

/** The header of a chunk, structured or extended; its payload of lengthBytes follows. */
export function encodeChunkHeader(
  out: Buffer,
  at: number,
  flags: number,
  type: number,
  request: RequestId,
  lengthBytes: number,
  style: HeaderStyle,
): void {
  const isExtended = style === 'extended';
  out.writeUInt32BE(isExtended ? nbd.EXTENDED_REPLY_MAGIC : nbd.STRUCTURED_REPLY_MAGIC, at);
  out.writeUInt16BE(flags, at + 4);
  out.writeUInt16BE(type, at + 6);
  out.writeUInt32BE(request.cookieHigh, at + 8);
  out.writeUInt32BE(request.cookieLow, at + 12);
  if (!isExtended) return void out.writeUInt32BE(lengthBytes, at + 16);
  out.writeUInt32BE(request.offsetHigh, at + 16);
  out.writeUInt32BE(request.offsetLow, at + 20);
  writeUint64(out, at + 24, lengthBytes);
}

/** A reply's header on the client's side. */
export interface ReplyHeader {
  style: HeaderStyle;
  /** Simple replies. */
  error: number;
  /** Chunks. */
  flags: number;
  type: number;
  /** Rounded above 2^53. */
  lengthBytes: number;
  cookieHigh: number;
  cookieLow: number;
  /** Extended ones: the request's; rounded above 2^53. */
  offset: number;
}

const STYLES: ReadonlyMap<number, HeaderStyle> = new Map<number, HeaderStyle>([
  [nbd.SIMPLE_REPLY_MAGIC, 'simple'],
  [nbd.STRUCTURED_REPLY_MAGIC, 'structured'],
  [nbd.EXTENDED_REPLY_MAGIC, 'extended'],
]);

/** Bytes of the header that begins with this magic; 0 when there is none such. */
export function replyHeaderBytes(magic: number): number {
  const style = STYLES.get(magic);
  if (style === undefined) return 0;
  return style === 'simple' ? nbd.SIMPLE_REPLY_BYTES : chunkHeaderBytes(style);
}

/** The magic is one that replyHeaderBytes knows. */
export function decodeReplyHeader(bytes: Buffer): ReplyHeader {
  const style = STYLES.get(bytes.readUInt32BE(0)) ?? 'simple';
  const isSimple = style === 'simple';
  const isExtended = style === 'extended';
  return {
    style,
    error: isSimple ? bytes.readUInt32BE(4) : 0,
    flags: isSimple ? nbd.REPLY_FLAG_DONE : bytes.readUInt16BE(4),
    type: isSimple ? nbd.ReplyType.none : bytes.readUInt16BE(6),
    lengthBytes: isSimple ? 0 : isExtended ? readUint64Rounded(bytes, 24) : bytes.readUInt32BE(16),
    cookieHigh: bytes.readUInt32BE(8),
    cookieLow: bytes.readUInt32BE(12),
    offset: isExtended ? readUint64Rounded(bytes, 16) : 0,
  };
}

export interface Extent {
  lengthBytes: number;
  /** What the context says: AllocationState bits, a depth, dirty. */
  state: number;
}

/** Bytes of a status chunk's payload. */
export function extentsBytes(count: number, style: HeaderStyle): number {
  return style === 'extended' ? 8 + 16 * count : 4 + 8 * count;
}

/** The payload of a status chunk: of its type blockStatus, or blockStatusExtended with extended headers. */
export function encodeExtents(
  out: Buffer,
  at: number,
  contextId: number,
  extents: readonly Extent[],
  style: HeaderStyle,
): void {
  out.writeUInt32BE(contextId, at);
  if (style === 'extended') {
    out.writeUInt32BE(extents.length, at + 4);
    extents.forEach((extent, i) => {
      writeUint64(out, at + 8 + 16 * i, extent.lengthBytes);
      writeUint64(out, at + 16 + 16 * i, extent.state);
    });
  } else
    extents.forEach((extent, i) => {
      out.writeUInt32BE(extent.lengthBytes, at + 4 + 8 * i);
      out.writeUInt32BE(extent.state, at + 8 + 8 * i);
    });
}

/** Errors: kind corrupt. */
export function decodeExtents(payload: Buffer, style: HeaderStyle): { contextId: number; extents: Extent[] } {
  const isExtended = style === 'extended';
  const [headBytes, extentBytes] = isExtended ? [8, 16] : [4, 8];
  const count = (payload.length - headBytes) / extentBytes;
  const isWhole = Number.isInteger(count) && count > 0;
  if (!isWhole || (isExtended && payload.readUInt32BE(4) !== count))
    throw new BlockError('corrupt', 'Protocol error: invalid payload for NBD_REPLY_TYPE_BLOCK_STATUS');
  const extents: Extent[] = [];
  for (let at = headBytes; at < payload.length; at += extentBytes) {
    const lengthBytes = isExtended ? readUint53(payload, at, 'extent') : payload.readUInt32BE(at);
    if (lengthBytes === 0)
      throw new BlockError('corrupt', 'Protocol error: server sent status chunk with zero length');
    const state = isExtended ? readUint64Rounded(payload, at + 8) : payload.readUInt32BE(at + 4);
    extents.push({ lengthBytes, state });
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
  // As in QEMU's servers.
  EACCES: nbd.NbdError.EINVAL,
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
