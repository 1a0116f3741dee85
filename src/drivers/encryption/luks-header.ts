import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { type Cipher, type Hash, keyBytesOf, modeText, parseCipher, parseHash } from './cipher.js';

/** LUKS1 On-Disk Format Specification 1.2.3: the header and its key slots. Integers are big-endian. */

export const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1');
export const HEADER_BYTES = 592;
export const SLOT_COUNT = 8;
/** Stripes of a split key. */
export const STRIPES = 4000;
export const SALT_BYTES = 32;
export const DIGEST_BYTES = 20;
const SECTOR_BYTES = 512;
const VERSION = 1;
const SLOTS_OFFSET = 208;
const SLOT_BYTES = 48;
const ACTIVE = 0x00ac71f3;
const INACTIVE = 0x0000dead;
/** Key material and payload begin in units of it. */
const ALIGNMENT_BYTES = 4096;
/** Most that node:crypto counts to. */
const MAX_ITERATIONS = 2 ** 31 - 1;

export interface KeySlot {
  readonly isActive: boolean;
  readonly iterations: number;
  readonly salt: Buffer;
  readonly keyOffset: number;
}

export interface LuksHeader {
  readonly cipher: Cipher;
  /** Of passwords, of the volume's key, and of the splitter. */
  readonly hash: Hash;
  readonly payloadOffset: number;
  /** Of the volume's key: it is the one whose digest this is. */
  readonly digest: Buffer;
  readonly salt: Buffer;
  readonly iterations: number;
  readonly uuid: string;
  readonly slots: readonly KeySlot[];
}

/** The bytes that a slot's split key takes. */
export function materialBytes(header: Pick<LuksHeader, 'cipher'>): number {
  return keyBytesOf(header.cipher) * STRIPES;
}

/** Where a new volume has its slots' keys, and its payload. */
export function layoutOf(cipher: Cipher): { keyOffsets: number[]; payloadOffset: number } {
  const slotBytes = alignUp(keyBytesOf(cipher) * STRIPES, ALIGNMENT_BYTES);
  const keyOffsets = Array.from({ length: SLOT_COUNT }, (_, slot) => ALIGNMENT_BYTES + slot * slotBytes);
  return { keyOffsets, payloadOffset: ALIGNMENT_BYTES + SLOT_COUNT * slotBytes };
}

/** `isDetached`: the payload is in another file. Errors: corrupt, unsupported; in QEMU's words. */
export function parseHeader(bytes: Buffer, isDetached = false): LuksHeader {
  if (bytes.length < HEADER_BYTES || !bytes.subarray(0, 6).equals(MAGIC))
    throw corrupt('Volume is not in LUKS format');
  const version = bytes.readUInt16BE(6);
  if (version !== VERSION)
    throw new BlockError('unsupported', `LUKS version ${version} is not supported`, { errno: 'ENOTSUP' });
  const name = textAt(bytes, 8, 32, 'cipher name');
  const mode = textAt(bytes, 40, 32, 'cipher mode');
  const hash = textAt(bytes, 72, 32, 'hash spec');
  const iterations = bytes.readUInt32BE(164);
  if (iterations === 0) throw corrupt('LUKS key iteration count is zero');
  const slots = Array.from({ length: SLOT_COUNT }, (_, slot) => parseSlot(bytes, slot));
  const keyBytes = bytes.readUInt32BE(108);
  const payloadOffset = bytes.readUInt32BE(104) * SECTOR_BYTES;
  checkPlaces(slots, keyBytes * STRIPES, isDetached ? Infinity : payloadOffset);
  return {
    cipher: parseCipher(name, mode, keyBytes),
    hash: parseHash(hash),
    payloadOffset: isDetached ? 0 : payloadOffset,
    digest: Buffer.from(bytes.subarray(112, 132)),
    salt: Buffer.from(bytes.subarray(132, 164)),
    iterations: countable(iterations),
    uuid: bytes.toString('latin1', 168, 208).split('\0', 1)[0] ?? '',
    slots,
  };
}

/** Node's limit: more would take hours anyway. */
function countable(iterations: number): number {
  if (iterations <= MAX_ITERATIONS) return iterations;
  throw new BlockError('limit', `LUKS iteration count ${iterations} is not supported by livedisk`);
}

function parseSlot(bytes: Buffer, slot: number): KeySlot {
  const at = SLOTS_OFFSET + slot * SLOT_BYTES;
  const state = bytes.readUInt32BE(at);
  if (state !== ACTIVE && state !== INACTIVE)
    throw corrupt(`Keyslot ${slot} state (active/disable) is corrupted`);
  const isActive = state === ACTIVE;
  const iterations = bytes.readUInt32BE(at + 4);
  const stripes = bytes.readUInt32BE(at + 44);
  if (stripes !== STRIPES) throw corrupt(`Keyslot ${slot} is corrupted (stripes ${stripes} != ${STRIPES})`);
  if (isActive && iterations === 0) throw corrupt(`Keyslot ${slot} iteration count is zero`);
  return {
    isActive,
    iterations: countable(iterations),
    salt: Buffer.from(bytes.subarray(at + 8, at + 40)),
    keyOffset: bytes.readUInt32BE(at + 40) * SECTOR_BYTES,
  };
}

function checkPlaces(slots: readonly KeySlot[], lengthBytes: number, payloadOffset: number): void {
  const taken = alignUp(HEADER_BYTES, SECTOR_BYTES);
  if (payloadOffset < taken) throw corrupt('LUKS payload is overlapping with the header');
  const end = (slot: KeySlot): number => slot.keyOffset + alignUp(lengthBytes, SECTOR_BYTES);
  for (const [i, slot] of slots.entries()) {
    if (slot.keyOffset < taken) throw corrupt(`Keyslot ${i} is overlapping with the LUKS header`);
    for (const [j, other] of slots.entries())
      if (j > i && slot.keyOffset < end(other) && other.keyOffset < end(slot))
        throw corrupt(`Keyslots ${i} and ${j} are overlapping in the header`);
    if (end(slot) > payloadOffset) throw corrupt(`Keyslot ${i} is overlapping with the encrypted payload`);
  }
}

function textAt(bytes: Buffer, at: number, lengthBytes: number, what: string): string {
  const text = bytes.toString('latin1', at, at + lengthBytes);
  const end = text.indexOf('\0');
  if (end < 0) throw corrupt(`LUKS header ${what} is not NUL terminated`);
  return text.slice(0, end);
}

/** In whole sectors, what follows it in the last is zeroes. */
export function encodeHeader(header: LuksHeader): Buffer {
  const bytes = Buffer.alloc(alignUp(HEADER_BYTES, SECTOR_BYTES));
  MAGIC.copy(bytes, 0);
  bytes.writeUInt16BE(VERSION, 6);
  bytes.write('aes', 8, 'latin1');
  bytes.write(modeText(header.cipher), 40, 'latin1');
  bytes.write(header.hash, 72, 'latin1');
  bytes.writeUInt32BE(header.payloadOffset / SECTOR_BYTES, 104);
  bytes.writeUInt32BE(keyBytesOf(header.cipher), 108);
  header.digest.copy(bytes, 112);
  header.salt.copy(bytes, 132);
  bytes.writeUInt32BE(header.iterations, 164);
  bytes.write(header.uuid, 168, 40, 'latin1');
  for (const [slot, value] of header.slots.entries()) encodeSlot(bytes, slot, value);
  return bytes;
}

/** Changes a slot in a header's bytes. */
export function encodeSlot(bytes: Buffer, slot: number, value: KeySlot): void {
  const at = SLOTS_OFFSET + slot * SLOT_BYTES;
  bytes.writeUInt32BE(value.isActive ? ACTIVE : INACTIVE, at);
  bytes.writeUInt32BE(value.iterations, at + 4);
  value.salt.copy(bytes, at + 8);
  bytes.writeUInt32BE(value.keyOffset / SECTOR_BYTES, at + 40);
  bytes.writeUInt32BE(STRIPES, at + 44);
}

function corrupt(message: string): BlockError {
  return new BlockError('corrupt', message, { errno: 'EINVAL' });
}
