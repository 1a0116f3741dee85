import { BlockError } from '../../base/error.js';
import { MAX_VIEW_BYTES } from '../../base/limits.js';
import {
  BackendRequest,
  HEADER_BYTES,
  HeaderFlag,
  MAX_PAYLOAD_BYTES,
  MAX_TABLE_REGIONS,
  VERSION_MASK,
  VRING_INDEX_MASK,
  VRING_NO_FD,
} from './constants.js';

/** The peer says what no message may say: its connection ends. */
export function broken(text: string): BlockError {
  return new BlockError('invalid', text, { errno: 'EPROTO' });
}

export interface Message {
  readonly request: number;
  /** The peer waits for an answer also where the request has none of its own (REPLY_ACK). */
  readonly needsReply: boolean;
  readonly payload: Buffer;
}

/** A stretch of a peer's memory: where its guest, and where its own process, sees it, and where its file has it. */
export interface MemoryRegion {
  readonly guestAddress: number;
  readonly lengthBytes: number;
  readonly userAddress: number;
  readonly fileOffset: number;
}

export interface VringAddresses {
  readonly index: number;
  readonly flags: number;
  /** In the address space of the peer's process. */
  readonly descriptors: number;
  readonly used: number;
  readonly available: number;
  /** Of the used ring, in the guest's memory. */
  readonly log: number;
}

/** Collects messages out of chunks. Errors: those of broken(). */
export class MessageReader {
  #rest = Buffer.alloc(0);

  /** There is a part of a message. */
  get hasPart(): boolean {
    return this.#rest.length > 0;
  }

  /** What came and was not taken. */
  get unread(): Buffer {
    return this.#rest;
  }

  push(chunk: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, chunk]);
  }

  /** The next whole message. */
  take(): Message | undefined {
    const rest = this.#rest;
    if (rest.length < HEADER_BYTES) return undefined;
    const [request, flags, lengthBytes] = [rest.readUInt32LE(0), rest.readUInt32LE(4), rest.readUInt32LE(8)];
    if ((flags & VERSION_MASK) !== HeaderFlag.version) throw broken(`unknown version, flags ${flags}`);
    if (lengthBytes > MAX_PAYLOAD_BYTES)
      throw broken(`message ${request} is too long (${lengthBytes} bytes)`);
    const end = HEADER_BYTES + lengthBytes;
    if (rest.length < end) return undefined;
    this.#rest = rest.subarray(end);
    return {
      request,
      needsReply: (flags & HeaderFlag.needReply) !== 0,
      payload: Buffer.from(rest.subarray(HEADER_BYTES, end)),
    };
  }
}

export function encodeMessage(request: number, flags: number, payload: Uint8Array): Buffer {
  const message = Buffer.alloc(HEADER_BYTES + payload.length);
  message.writeUInt32LE(request, 0);
  message.writeUInt32LE(flags | HeaderFlag.version, 4);
  message.writeUInt32LE(payload.length, 8);
  message.set(payload, HEADER_BYTES);
  return message;
}

export function encodeReply(request: number, payload: Uint8Array): Buffer {
  return encodeMessage(request, HeaderFlag.reply, payload);
}

export function encodeConfigChange(): Buffer {
  return encodeMessage(BackendRequest.configChange, 0, new Uint8Array(0));
}

export function encodeUint64(value: bigint): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64LE(value);
  return payload;
}

/** Errors: those of broken(). */
export function expectLength({ request, payload }: Message, lengthBytes: number): void {
  if (payload.length >= lengthBytes) return;
  throw broken(`message ${request} has ${payload.length} bytes, not ${lengthBytes}`);
}

export function decodeUint64(message: Message): bigint {
  expectLength(message, 8);
  return message.payload.readBigUInt64LE(0);
}

/** Addresses and lengths of what a process can have are below 2^53. Errors: those of broken(). */
export function readAddress(payload: Buffer, at: number): number {
  const value = payload.readUInt32LE(at) + payload.readUInt32LE(at + 4) * 2 ** 32;
  if (Number.isSafeInteger(value)) return value;
  throw broken(`no address: ${payload.readBigUInt64LE(at)}`);
}

/** A queue and a number. */
export function decodeVringState(message: Message): { index: number; value: number } {
  expectLength(message, 8);
  return { index: message.payload.readUInt32LE(0), value: message.payload.readUInt32LE(4) };
}

export function encodeVringState(index: number, value: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeUInt32LE(index, 0);
  payload.writeUInt32LE(value, 4);
  return payload;
}

/** Of SET_VRING_KICK, _CALL and _ERR. */
export function decodeVringFd(message: Message): { index: number; hasFd: boolean } {
  const value = decodeUint64(message);
  const flags = Number(value & BigInt(VRING_NO_FD | VRING_INDEX_MASK));
  return { index: flags & VRING_INDEX_MASK, hasFd: (flags & VRING_NO_FD) === 0 };
}

export function decodeVringAddresses(message: Message): VringAddresses {
  expectLength(message, 40);
  const { payload } = message;
  return {
    index: payload.readUInt32LE(0),
    flags: payload.readUInt32LE(4),
    descriptors: readAddress(payload, 8),
    used: readAddress(payload, 16),
    available: readAddress(payload, 24),
    log: readAddress(payload, 32),
  };
}

export function encodeVringAddresses(addresses: VringAddresses): Buffer {
  const { index, flags, descriptors, used, available, log } = addresses;
  const payload = Buffer.alloc(40);
  payload.writeUInt32LE(index, 0);
  payload.writeUInt32LE(flags, 4);
  [descriptors, used, available, log].forEach((address, i) =>
    payload.writeBigUInt64LE(BigInt(address), 8 + 8 * i),
  );
  return payload;
}

export function decodeMemoryTable(message: Message): MemoryRegion[] {
  expectLength(message, 8);
  const count = message.payload.readUInt32LE(0);
  if (count > MAX_TABLE_REGIONS) throw broken(`${count} regions of memory`);
  expectLength(message, 8 + 32 * count);
  return Array.from({ length: count }, (_, i) => decodeRegion(message.payload, 8 + 32 * i));
}

/** Of ADD_MEM_REG and REM_MEM_REG. */
export function decodeMemoryRegion(message: Message): MemoryRegion {
  expectLength(message, 40);
  return decodeRegion(message.payload, 8);
}

/** Of ADD_MEM_REG. */
export function encodeMemoryRegion({
  guestAddress,
  lengthBytes,
  userAddress,
  fileOffset,
}: MemoryRegion): Buffer {
  const payload = Buffer.alloc(40);
  [guestAddress, lengthBytes, userAddress, fileOffset].forEach((value, i) =>
    payload.writeBigUInt64LE(BigInt(value), 8 + 8 * i),
  );
  return payload;
}

function decodeRegion(payload: Buffer, at: number): MemoryRegion {
  const region = {
    guestAddress: readAddress(payload, at),
    lengthBytes: readAddress(payload, at + 8),
    userAddress: readAddress(payload, at + 16),
    fileOffset: readAddress(payload, at + 24),
  };
  const { guestAddress, lengthBytes, userAddress, fileOffset } = region;
  const isWithin = (start: number): boolean => Number.isSafeInteger(start + lengthBytes);
  if (lengthBytes > 0 && [guestAddress, userAddress, fileOffset].every(isWithin)) return region;
  throw broken('a region of memory wraps around, or has no bytes');
}

/**
 * Of SET_LOG_BASE: a stretch of the file that came along, in one view: of 32 TiB of memory. Errors: those of broken().
 */
export function decodeLog(message: Message): { lengthBytes: number; fileOffset: number } {
  expectLength(message, 16);
  const lengthBytes = readAddress(message.payload, 0);
  if (lengthBytes > MAX_VIEW_BYTES) throw broken(`a log of ${lengthBytes} bytes`);
  return { lengthBytes, fileOffset: readAddress(message.payload, 8) };
}

export function encodeLog(lengthBytes: number, fileOffset: number): Buffer {
  const payload = Buffer.alloc(16);
  payload.writeBigUInt64LE(BigInt(lengthBytes), 0);
  payload.writeBigUInt64LE(BigInt(fileOffset), 8);
  return payload;
}

/** Of GET_INFLIGHT_FD and SET_INFLIGHT_FD. */
export interface InflightDescription {
  readonly lengthBytes: number;
  readonly fileOffset: number;
  readonly queueCount: number;
  readonly queueSize: number;
}

export function decodeInflight(message: Message): InflightDescription {
  expectLength(message, 20);
  const { payload } = message;
  return {
    lengthBytes: readAddress(payload, 0),
    fileOffset: readAddress(payload, 8),
    queueCount: payload.readUInt16LE(16),
    queueSize: payload.readUInt16LE(18),
  };
}

export function encodeInflight(description: InflightDescription): Buffer {
  const payload = Buffer.alloc(24);
  payload.writeBigUInt64LE(BigInt(description.lengthBytes), 0);
  payload.writeBigUInt64LE(BigInt(description.fileOffset), 8);
  payload.writeUInt16LE(description.queueCount, 16);
  payload.writeUInt16LE(description.queueSize, 18);
  return payload;
}

/** Of GET_CONFIG and SET_CONFIG; SET_CONFIG's bytes follow. */
export function decodeConfig(message: Message): { offset: number; lengthBytes: number; bytes: Buffer } {
  expectLength(message, 12);
  const { payload } = message;
  return {
    offset: payload.readUInt32LE(0),
    lengthBytes: payload.readUInt32LE(4),
    bytes: payload.subarray(12),
  };
}

/** Of SET_CONFIG. */
export function encodeConfig(offset: number, bytes: Uint8Array): Buffer {
  const payload = Buffer.alloc(12 + bytes.length);
  payload.writeUInt32LE(offset, 0);
  payload.writeUInt32LE(bytes.length, 4);
  payload.set(bytes, 12);
  return payload;
}
