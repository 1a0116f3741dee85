import { createHash } from 'node:crypto';
import type { Durability, TrackingLoss } from '../../../block/dirty-bitmap.js';
import { ExtensionType, findExtension, type HeaderExtension } from './header-extensions.js';

/**
 * Our header extension of bitmaps that a crash leaves right: what is in use of them is in their clusters with bits too many
 * at most, as long as AUTOCLEAR_DURABLE_BITMAPS is set. A version (1), how many, and of each: the first 8 bytes of its
 * name's SHA-256, its id (8), since when in ms (8), why it is lost (4; 0: it is not), and flags
 * (4; 1: another program has kept it right in between); all big-endian.
 */
const VERSION = 1;
const HEAD_BYTES = 8;
const ENTRY_BYTES = 32;
/** The first sector of the header has room for no more. */
export const MAX_DURABLE_BITMAPS = 8;
const WAS_ELSEWHERE = 1;
const LOSSES: readonly TrackingLoss[] = ['written-by-another', 'unclean-end'];

export interface NamedDurability extends Durability {
  readonly name: string;
}

/** By the digest of its name. */
export type DurableEntries = ReadonlyMap<string, Durability>;

function digest(name: string): Buffer {
  return createHash('sha256').update(name, 'utf8').digest().subarray(0, 8);
}

export function findDurable(entries: DurableEntries, name: string): Durability | undefined {
  return entries.get(digest(name).toString('hex'));
}

/** What a header says; nothing where that is not as it should be. */
export function decodeDurable(extensions: readonly HeaderExtension[]): DurableEntries {
  const entries = new Map<string, Durability>();
  const data = findExtension(extensions, ExtensionType.durableBitmaps);
  if (!data || data.length < HEAD_BYTES || data.readUInt32BE(0) !== VERSION) return entries;
  const count = data.readUInt32BE(4);
  if (count > MAX_DURABLE_BITMAPS || data.length !== HEAD_BYTES + count * ENTRY_BYTES) return entries;
  for (let at = HEAD_BYTES; at < data.length; at += ENTRY_BYTES) {
    const sinceMs = Number(data.readBigUInt64BE(at + 16));
    const reason = data.readUInt32BE(at + 24);
    const lost = LOSSES[reason - 1];
    if (!Number.isSafeInteger(sinceMs) || (reason !== 0 && lost === undefined)) continue;
    const id = data.toString('hex', at + 8, at + 16);
    const wasElsewhere = (data.readUInt32BE(at + 28) & WAS_ELSEWHERE) !== 0;
    const more = { ...(lost && { lost }), ...(wasElsewhere && { wasElsewhere }) };
    entries.set(data.toString('hex', at, at + 8), { id, sinceMs, ...more });
  }
  return entries;
}

/** Undefined: there is nothing to say. */
export function encodeDurable(entries: readonly NamedDurability[]): HeaderExtension | undefined {
  if (entries.length === 0) return undefined;
  const data = Buffer.alloc(HEAD_BYTES + entries.length * ENTRY_BYTES);
  data.writeUInt32BE(VERSION, 0);
  data.writeUInt32BE(entries.length, 4);
  entries.forEach(({ name, id, sinceMs, lost, wasElsewhere }, index) => {
    const at = HEAD_BYTES + index * ENTRY_BYTES;
    digest(name).copy(data, at);
    Buffer.from(id, 'hex').copy(data, at + 8);
    data.writeBigUInt64BE(BigInt(sinceMs), at + 16);
    data.writeUInt32BE(lost === undefined ? 0 : LOSSES.indexOf(lost) + 1, at + 24);
    data.writeUInt32BE(wasElsewhere === true ? WAS_ELSEWHERE : 0, at + 28);
  });
  return { type: ExtensionType.durableBitmaps, data };
}
