import { alignUp } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import { mergeStripes, passwordKey } from '../../codec/index.js';
import type { Host } from '../../host/host.js';
import type { NewLuks } from '../../schema/encryption-options.js';
import { type Cipher, type Hash, keyBytesOf, newCipher } from './cipher.js';
import { passwordIterations } from './iterations.js';
import {
  DIGEST_BYTES,
  encodeHeader,
  encodeSlot,
  HEADER_BYTES,
  type KeySlot,
  layoutOf,
  type LuksHeader,
  materialBytes,
  parseHeader,
  SALT_BYTES,
} from './luks-header.js';
import { SECTOR_BYTES, SectorCipher } from './sector-cipher.js';

/** Where a volume's header and key slots are: offsets are from the header's beginning, whole sectors. */
export interface LuksStorage {
  /** What lies beyond the end are zeroes. */
  read(offset: number, lengthBytes: number): Promise<Buffer>;
  write(offset: number, bytes: Uint8Array): Promise<void>;
  flush(): Promise<void>;
}

/** The header and key slots of a LUKS1 volume; its payload is somebody else's. */
export class LuksVolume {
  readonly #host: Host;
  readonly #storage: LuksStorage;
  #header: LuksHeader;

  constructor(host: Host, storage: LuksStorage, header: LuksHeader) {
    this.#host = host;
    this.#storage = storage;
    this.#header = header;
  }

  /** Errors: corrupt, unsupported; those of reading. */
  static async open(host: Host, storage: LuksStorage, isDetached = false): Promise<LuksVolume> {
    const bytes = await storage.read(0, alignUp(HEADER_BYTES, SECTOR_BYTES));
    return new LuksVolume(host, storage, parseHeader(bytes, isDetached));
  }

  get header(): LuksHeader {
    return this.#header;
  }

  /** What the payload is encrypted with. Errors: permission, where no slot takes the password. */
  async unlock(password: Uint8Array): Promise<Buffer> {
    for (const slot of this.#header.slots.keys()) {
      const key = await this.#keyIn(slot, password);
      if (key) return key;
    }
    throw new BlockError('permission', 'Invalid password, cannot unlock any keyslot', { errno: 'EPERM' });
  }

  payloadCipher(key: Uint8Array): SectorCipher {
    return new SectorCipher(this.#host.compute, this.#header.cipher, key);
  }

  /** Whether that slot is one of the password. */
  async holds(slot: number, password: Uint8Array): Promise<boolean> {
    return (await this.#keyIn(slot, password)) !== undefined;
  }

  /** The volume's key, if the slot has it under that password. */
  async #keyIn(slot: number, password: Uint8Array): Promise<Buffer | undefined> {
    const { cipher, hash, salt, iterations, digest, slots } = this.#header;
    const { isActive, keyOffset, ...how } = slots[slot] as KeySlot;
    if (!isActive) return undefined;
    const slotKey = await derive(this.#host, hash, how, password, keyBytesOf(cipher));
    const length = materialBytes(this.#header);
    const material = await this.#storage.read(keyOffset, alignUp(length, SECTOR_BYTES));
    await new SectorCipher(this.#host.compute, cipher, slotKey).decrypt(0, material);
    const key = await merge(this.#host, hash, material.subarray(0, length), keyBytesOf(cipher));
    const found = await derive(this.#host, hash, { salt, iterations }, key, DIGEST_BYTES);
    return found.equals(digest) ? key : undefined;
  }

  /**
   * Puts the volume's key into a slot that is not in use, under another password; durable on return. A crash leaves the
   * slot in use or not: what it is to hold is durable before its state.
   */
  async fillSlot(slot: number, key: Uint8Array, password: Uint8Array, timeMs: number): Promise<void> {
    const { hash } = this.#header;
    const iterations = await passwordIterations(this.#host, hash, key.length, timeMs);
    const value = { isActive: true, salt: this.#host.random.bytes(SALT_BYTES), iterations };
    await writeKey(this.#host, this.#storage, this.#header, { slot, key, password, ...value });
    await this.#storage.flush();
    await this.#writeSlot(slot, { ...value, keyOffset: this.#keyOffset(slot) }, 'last first');
  }

  /** Makes a slot's password useless; durable on return. */
  async eraseSlot(slot: number): Promise<void> {
    const keyOffset = this.#keyOffset(slot);
    const value = { isActive: false, salt: Buffer.alloc(SALT_BYTES), iterations: 0, keyOffset };
    await this.#writeSlot(slot, value, 'first first');
    const length = alignUp(materialBytes(this.#header), SECTOR_BYTES);
    await this.#storage.write(keyOffset, this.#host.random.bytes(length));
    await this.#storage.flush();
  }

  #keyOffset(slot: number): number {
    return (this.#header.slots[slot] as KeySlot).keyOffset;
  }

  /** The state is in the first sector of those that a slot's entry is in: the one that decides. */
  async #writeSlot(slot: number, value: KeySlot, order: 'last first' | 'first first'): Promise<void> {
    const bytes = await this.#storage.read(0, alignUp(HEADER_BYTES, SECTOR_BYTES));
    const before = Buffer.from(bytes);
    encodeSlot(bytes, slot, value);
    const sectors = [0, SECTOR_BYTES];
    for (const at of order === 'last first' ? sectors.reverse() : sectors) {
      const sector = bytes.subarray(at, at + SECTOR_BYTES);
      if (sector.equals(before.subarray(at, at + SECTOR_BYTES))) continue;
      await this.#storage.write(at, sector);
      await this.#storage.flush();
    }
    this.#header = parseHeader(bytes, this.#header.payloadOffset === 0);
  }
}

/** Errors: invalid. */
export function cipherOf(options: NewLuks): Cipher {
  const { 'cipher-alg': algorithm, 'cipher-mode': mode, 'ivgen-alg': generator } = options;
  const hash = options['ivgen-hash-alg'] ?? (generator === 'essiv' ? 'sha256' : undefined);
  return newCipher(Number(algorithm.slice('aes-'.length)) / 8, mode, generator, hash);
}

/**
 * Writes the header and the first slot of a new volume; durable on return. Until the last step there is none. Answers
 * what its payload is encrypted with. Errors: invalid, those of writing.
 */
export async function createVolume(
  host: Host,
  storage: LuksStorage,
  options: NewLuks,
  { password, uuid, isDetached = false }: { password: Uint8Array; uuid: string; isDetached?: boolean },
): Promise<{ header: LuksHeader; key: Buffer }> {
  const cipher = cipherOf(options);
  const { 'hash-alg': hash, 'iter-time': timeMs } = options;
  const key = host.random.bytes(keyBytesOf(cipher));
  const { keyOffsets, payloadOffset } = layoutOf(cipher);
  const salt = host.random.bytes(SALT_BYTES);
  // The password is what is guessed, not the key: an eighth of the time is enough, as in cryptsetup.
  const iterations = await passwordIterations(host, hash, DIGEST_BYTES, timeMs / 8);
  const digest = await derive(host, hash, { salt, iterations }, key, DIGEST_BYTES);
  const unused = { isActive: false, iterations: 0, salt: Buffer.alloc(SALT_BYTES) };
  const first = {
    isActive: true,
    iterations: await passwordIterations(host, hash, key.length, timeMs),
    salt: host.random.bytes(SALT_BYTES),
  };
  const slots = keyOffsets.map((keyOffset, slot) => ({ ...(slot === 0 ? first : unused), keyOffset }));
  const common = { cipher, hash, digest, salt, iterations, uuid, slots };
  const header = { ...common, payloadOffset: isDetached ? 0 : payloadOffset };
  await writeKey(host, storage, header, { slot: 0, key, password, ...first });
  await storage.flush();
  const bytes = encodeHeader(header);
  await storage.write(SECTOR_BYTES, bytes.subarray(SECTOR_BYTES));
  await storage.flush();
  await storage.write(0, bytes.subarray(0, SECTOR_BYTES));
  await storage.flush();
  return { header, key };
}

interface KeyToWrite {
  slot: number;
  key: Uint8Array;
  password: Uint8Array;
  salt: Buffer;
  iterations: number;
}

/** Splits a key, and encrypts it with one that is made of the password, to where the slot has it. */
async function writeKey(
  host: Host,
  storage: LuksStorage,
  header: Pick<LuksHeader, 'cipher' | 'hash' | 'slots'>,
  { slot, key, password, ...how }: KeyToWrite,
): Promise<void> {
  const { cipher, hash, slots } = header;
  const length = materialBytes(header);
  const material = Buffer.alloc(alignUp(length, SECTOR_BYTES));
  const last = length - key.length;
  host.random.bytes(last).copy(material);
  material.set(key, last);
  material.set(await merge(host, hash, material.subarray(0, length), key.length), last);
  const slotKey = await derive(host, hash, how, password, key.length);
  const encrypted = await new SectorCipher(host.compute, cipher, slotKey).encrypt(0, material);
  await storage.write((slots[slot] as KeySlot).keyOffset, encrypted);
}

async function merge(host: Host, hash: Hash, stripes: Buffer, keyBytes: number): Promise<Buffer> {
  const output = Buffer.alloc(keyBytes);
  await host.compute.run({ function: mergeStripes, input: stripes, output, parameters: { hash } });
  return output;
}

async function derive(
  host: Host,
  hash: Hash,
  { salt, iterations }: { salt: Buffer; iterations: number },
  password: Uint8Array,
  lengthBytes: number,
): Promise<Buffer> {
  const output = Buffer.alloc(lengthBytes);
  const parameters = { hash, salt, iterations };
  await host.compute.run({ function: passwordKey, input: password, output, parameters });
  return output;
}
