import { assert } from '../../base/assert.js';
import { alignUp } from '../../base/align.js';
import type { ChildIo } from '../../block/driver.js';
import { type Change, writeDurably } from '../tables/entry-cache.js';
import { readBytes, uint64 } from '../tables/read-bytes.js';
import { checksumOf, LOG_SECTOR_BYTES, type VhdxHeader } from './layout.js';

/** An entry: this, its descriptors, and a sector of data for each that has some (MS-VHDX 2.3.1). */
const ENTRY_HEADER_BYTES = 64;
const DESCRIPTOR_BYTES = 32;
/** Of a sector, its descriptor has the first and the last bytes. */
const LEADING_BYTES = 8;
const TRAILING_BYTES = 4;
const SECTORS_AN_ENTRY = 60;

interface Entry {
  readonly position: number;
  readonly lengthBytes: number;
  readonly tail: number;
  readonly sequence: bigint;
}

/** The log of an image. Positions are within it, and go round. */
export class VhdxLog {
  readonly #file: ChildIo;
  readonly #offset: number;
  readonly #lengthBytes: number;
  readonly #guid: Buffer;
  #sequence = 1n;
  /** Entries take turns in two halves: one that is torn leaves the one before it. */
  #half = 0;

  constructor(file: ChildIo, { logOffset, logBytes, logGuid }: VhdxHeader) {
    this.#file = file;
    this.#offset = logOffset;
    this.#lengthBytes = logBytes;
    this.#guid = logGuid;
  }

  /** Brings changes of whole sectors to disk so that after a crash each entry's are there as a whole, or not at all. */
  async write(changes: readonly Change[]): Promise<void> {
    const sectors: Change[] = [];
    for (const { offset, bytes } of changes) {
      assert(
        offset % LOG_SECTOR_BYTES === 0 && bytes.length % LOG_SECTOR_BYTES === 0,
        'whole sectors are logged',
      );
      for (let at = 0; at < bytes.length; at += LOG_SECTOR_BYTES)
        sectors.push({ offset: offset + at, bytes: bytes.subarray(at, at + LOG_SECTOR_BYTES) });
    }
    for (let i = 0; i < sectors.length; i += SECTORS_AN_ENTRY) {
      const some = sectors.slice(i, i + SECTORS_AN_ENTRY);
      const position = this.#half * (this.#lengthBytes / 2);
      this.#half = 1 - this.#half;
      const entry = this.#encode(some, position);
      await writeDurably(this.#file, [{ offset: this.#offset + position, bytes: entry }]);
      await writeDurably(this.#file, some);
    }
  }

  #encode(sectors: readonly Change[], position: number): Buffer {
    const dataAt = alignUp(ENTRY_HEADER_BYTES + sectors.length * DESCRIPTOR_BYTES, LOG_SECTOR_BYTES);
    const bytes = Buffer.alloc(dataAt + sectors.length * LOG_SECTOR_BYTES);
    assert(bytes.length <= this.#lengthBytes / 2, 'an entry fits into half of the log');
    const sequence = this.#sequence++;
    bytes.write('loge', 0, 'latin1');
    bytes.writeUInt32LE(bytes.length, 8);
    bytes.writeUInt32LE(position, 12);
    bytes.writeBigUInt64LE(sequence, 16);
    bytes.writeUInt32LE(sectors.length, 24);
    this.#guid.copy(bytes, 32);
    const fileBytes = BigInt(this.#file.lengthBytes);
    bytes.writeBigUInt64LE(fileBytes, 48);
    bytes.writeBigUInt64LE(fileBytes, 56);
    for (const [i, { offset, bytes: sector }] of sectors.entries()) {
      const at = ENTRY_HEADER_BYTES + i * DESCRIPTOR_BYTES;
      bytes.write('desc', at, 'latin1');
      sector.copy(bytes, at + 4, LOG_SECTOR_BYTES - TRAILING_BYTES);
      sector.copy(bytes, at + 8, 0, LEADING_BYTES);
      bytes.writeBigUInt64LE(BigInt(offset), at + 16);
      bytes.writeBigUInt64LE(sequence, at + 24);
      const data = dataAt + i * LOG_SECTOR_BYTES;
      bytes.write('data', data, 'latin1');
      bytes.writeUInt32LE(Number(sequence / 2n ** 32n), data + 4);
      sector.copy(bytes, data + LEADING_BYTES, LEADING_BYTES, LOG_SECTOR_BYTES - TRAILING_BYTES);
      bytes.writeUInt32LE(Number(sequence % 2n ** 32n), data + LOG_SECTOR_BYTES - TRAILING_BYTES);
    }
    bytes.writeUInt32LE(checksumOf(bytes), 4);
    return bytes;
  }

  /** Whether something is to be replayed. */
  async isActive(): Promise<boolean> {
    return (await this.#activeSequence()).length > 0;
  }

  /** Does again what the last entries say; durable on return. */
  async replay(): Promise<void> {
    for (const entry of await this.#activeSequence()) await this.#replayEntry(await this.#read(entry));
    await this.#file.flush();
  }

  /** The entries of the newest sequence that is whole, oldest first. */
  async #activeSequence(): Promise<Entry[]> {
    const entries = await this.#findEntries();
    const newestFirst = [...entries.values()].sort((a, b) => (a.sequence < b.sequence ? 1 : -1));
    for (const head of newestFirst) {
      const sequence: Entry[] = [];
      let at = entries.get(head.tail);
      while (at && at.sequence <= head.sequence && sequence.length < entries.size) {
        sequence.push(at);
        if (at === head) return sequence;
        const next = entries.get((at.position + at.lengthBytes) % this.#lengthBytes);
        at = next?.sequence === at.sequence + 1n ? next : undefined;
      }
    }
    return [];
  }

  async #findEntries(): Promise<Map<number, Entry>> {
    const entries = new Map<number, Entry>();
    for (let position = 0; position < this.#lengthBytes; position += LOG_SECTOR_BYTES) {
      const header = await readBytes(this.#file, this.#offset + position, ENTRY_HEADER_BYTES);
      const entry = this.#parseEntry(header, position);
      if (entry && this.#isSound(await this.#read(entry), entry)) entries.set(position, entry);
    }
    return entries;
  }

  #parseEntry(header: Buffer, position: number): Entry | undefined {
    const lengthBytes = header.readUInt32LE(8);
    const tail = header.readUInt32LE(12);
    const isEntry =
      header.toString('latin1', 0, 4) === 'loge' &&
      header.subarray(32, 48).equals(this.#guid) &&
      lengthBytes > 0 &&
      lengthBytes % LOG_SECTOR_BYTES === 0 &&
      lengthBytes <= this.#lengthBytes &&
      tail % LOG_SECTOR_BYTES === 0;
    return isEntry ? { position, lengthBytes, tail, sequence: header.readBigUInt64LE(16) } : undefined;
  }

  async #read({ position, lengthBytes }: Entry): Promise<Buffer> {
    const first = Math.min(lengthBytes, this.#lengthBytes - position);
    const bytes = await readBytes(this.#file, this.#offset + position, first);
    if (first === lengthBytes) return bytes;
    return Buffer.concat([bytes, await readBytes(this.#file, this.#offset, lengthBytes - first)]);
  }

  /** All of it is there, and of one sequence number. */
  #isSound(bytes: Buffer, { sequence }: Entry): boolean {
    if (bytes.readUInt32LE(4) !== checksumOf(bytes)) return false;
    const { count, dataAt } = descriptorsOf(bytes);
    if (dataAt > bytes.length) return false;
    let data = dataAt;
    for (let i = 0; i < count; i++) {
      const at = ENTRY_HEADER_BYTES + i * DESCRIPTOR_BYTES;
      if (bytes.readBigUInt64LE(at + 24) !== sequence) return false;
      const kind = bytes.toString('latin1', at, at + 4);
      if (kind === 'zero') {
        if (uint64(bytes, at + 8) + uint64(bytes, at + 16) > Number.MAX_SAFE_INTEGER) return false;
        continue;
      }
      if (kind !== 'desc' || data + LOG_SECTOR_BYTES > bytes.length) return false;
      if (uint64(bytes, at + 16) > Number.MAX_SAFE_INTEGER) return false;
      const high = BigInt(bytes.readUInt32LE(data + 4));
      const low = BigInt(bytes.readUInt32LE(data + LOG_SECTOR_BYTES - TRAILING_BYTES));
      if (bytes.toString('latin1', data, data + 4) !== 'data' || high * 2n ** 32n + low !== sequence)
        return false;
      data += LOG_SECTOR_BYTES;
    }
    return true;
  }

  async #replayEntry(bytes: Buffer): Promise<void> {
    const { count, dataAt } = descriptorsOf(bytes);
    const fileBytes = uint64(bytes, 56);
    if (fileBytes !== Infinity && fileBytes > this.#file.lengthBytes) await this.#file.extend(fileBytes);
    let data = dataAt;
    for (let i = 0; i < count; i++) {
      const at = ENTRY_HEADER_BYTES + i * DESCRIPTOR_BYTES;
      const offset = uint64(bytes, at + 16);
      if (bytes.toString('latin1', at, at + 4) === 'zero') {
        await this.#zero(offset, uint64(bytes, at + 8));
        continue;
      }
      const sector = Buffer.from(bytes.subarray(data, data + LOG_SECTOR_BYTES));
      bytes.copy(sector, 0, at + 8, at + 8 + LEADING_BYTES);
      bytes.copy(sector, LOG_SECTOR_BYTES - TRAILING_BYTES, at + 4, at + 4 + TRAILING_BYTES);
      await this.#file.write(offset, sector, 0);
      data += LOG_SECTOR_BYTES;
    }
  }

  /** What is beyond the end of the file reads as zeroes. */
  async #zero(offset: number, lengthBytes: number): Promise<void> {
    const inside = Math.min(lengthBytes, this.#file.lengthBytes - offset);
    if (inside > 0) await this.#file.writeZeroes(offset, inside, 0);
  }
}

function descriptorsOf(bytes: Buffer): { count: number; dataAt: number } {
  const count = bytes.readUInt32LE(24);
  return { count, dataAt: alignUp(ENTRY_HEADER_BYTES + count * DESCRIPTOR_BYTES, LOG_SECTOR_BYTES) };
}
