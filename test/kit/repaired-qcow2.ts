import { COPIED, DamagedQcow2, ownEntry } from './damaged-qcow2.js';
import { HandmadeQcow2 } from './handmade-qcow2.js';
import { createQcow2 } from './new-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from './recorded-disk.js';
import { checkQcow2 } from '../../src/drivers/qcow2/check/check.js';
import { FieldOffset } from '../../src/drivers/qcow2/disk/header.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';

/** Small images that a repair has something to do with, and what makes one worse than it was. */

export const CLUSTER = 1024;
/** Two L2 tables. */
export const SIZE = 130 * CLUSTER;

/** Guest clusters 0, 2, 3 and 40 hold data; 5 keeps a host cluster for zeroes. */
export function soundImage(): DamagedQcow2 {
  const image = new HandmadeQcow2({ sizeBytes: SIZE, clusterBytes: CLUSTER, clusters: 24 });
  image.data(0, 1);
  image.data(2, 3);
  image.data(3, 4);
  image.entry(5, BigInt(image.cluster(9)) | COPIED | 1n);
  image.data(40, 6);
  return new DamagedQcow2(image.bytes);
}

export type Damage = (image: DamagedQcow2) => void;

/** What is damaged, and how many of the flushes of its repair some crash must miss when they are left out. */
export const DAMAGES: ReadonlyArray<readonly [string, Damage, number]> = [
  ['leaks', (i) => (i.setRefcount(20 * CLUSTER, 1), i.setRefcount(22 * CLUSTER, 7)), 1],
  [
    'a cluster that leaks references',
    (i) => (i.setRefcount(i.data(0), 3), i.setEntry(0, BigInt(i.data(0)))),
    1,
  ],
  ['data used twice', (i) => i.setEntry(1, i.entry(0)), 2],
  ['an L2 table used twice', (i) => i.set(i.l1 + 8, i.u64(i.l1)), 2],
  ['flags', (i) => (i.setEntry(0, BigInt(i.data(0))), i.set(i.l1, BigInt(i.l2))), 1],
  ['a preallocated cluster between clusters', (i) => i.setEntry(5, i.entry(5) + 512n), 1],
  ['data counted as free', (i) => i.setRefcount(i.data(0), 0), 2],
  ['no refcount block', (i) => i.set(i.refcountTable, 0n), 2],
  ['reserved bits of the refcount table', (i) => i.set(i.refcountTable, i.u64(i.refcountTable) | 1n), 2],
  ['a refcount block between clusters', (i) => i.set(i.refcountTable, i.u64(i.refcountTable) | 512n), 2],
  ['a refcount block behind the end', (i) => i.set(i.refcountTable, 2n ** 40n), 2],
  ['a refcount block named twice', (i) => i.set(i.refcountTable + 8, i.u64(i.refcountTable)), 2],
  ['the L1 table as refcount block', (i) => i.set(i.refcountTable, BigInt(i.l1)), 2],
  ['data on the L1 table', (i) => i.setEntry(0, ownEntry(i.l1)), 2],
  ['bits that say dirty and corrupt', (i) => (i.set(72, 3n), i.setRefcount(i.data(2), 2)), 1],
  ['a lost end, and free clusters in use', (i) => (i.setRefcount(i.data(0), 0), i.truncate(9 * CLUSTER)), 2],
];

/** What a guest reads of each cluster; undefined where it cannot. */
export async function guestSees(content: Buffer): Promise<Array<string | undefined>> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', content);
  const disk = await shelf.open('image', { readOnly: true });
  const seen: Array<string | undefined> = [];
  for (let at = 0; at < SIZE; at += CLUSTER)
    seen.push(
      await disk.read(at, CLUSTER).then(
        (bytes) => bytes.toString('hex'),
        () => undefined,
      ),
    );
  await disk.close();
  return seen;
}

export interface State {
  seen: Array<string | undefined>;
  /** Clusters in use that count for less than their users. */
  tooLow: Set<string>;
  /** Entries that claim to be the only one where the refcount is another. */
  claims: Set<string>;
  problems: string[];
  isMarked: boolean;
}

export async function stateOf(content: Buffer): Promise<State> {
  const { messages } = await checkQcow2(childOf(new RecordedDisk(content)));
  const matching = (pattern: RegExp): Set<string> =>
    new Set(messages.flatMap((line) => pattern.exec(line)?.[1] ?? []));
  return {
    seen: await guestSees(content),
    tooLow: matching(/^ERROR cluster (\d+)/),
    claims: matching(/entry=8([0-9a-f]{15}) refcount/),
    problems: messages,
    isMarked: content.readBigUInt64BE(FieldOffset.incompatible) !== 0n,
  };
}

/** Why a crash left the image worse than it was. */
export function worse(before: State, after: State): string | undefined {
  const changed = before.seen.findIndex((bytes, i) => bytes !== undefined && bytes !== after.seen[i]);
  if (changed >= 0) return `guest cluster ${changed} is another`;
  for (const cluster of after.tooLow)
    if (!before.tooLow.has(cluster)) return `cluster ${cluster} counts too low`;
  for (const entry of after.claims) if (!before.claims.has(entry)) return `entry ${entry} claims too much`;
  const isGood = after.problems.length === 0;
  if (before.isMarked && !after.isMarked && !isGood) return `marked sound with ${after.problems.join('; ')}`;
  return undefined;
}

/** A disk that was all 1, 2, and is all 3 by now, and its snapshots of each. */
export async function withSnapshots(): Promise<Buffer> {
  const shelf = new DiskShelf([qcow2Driver]);
  await createQcow2(childOf(shelf.put('image')), { sizeBytes: SIZE, options: { 'cluster-size': CLUSTER } });
  const disk = await shelf.open('image');
  for (const value of [1, 2]) {
    await disk.backend.write(0, Buffer.alloc(8 * CLUSTER, value));
    const clock = { dateSec: 5, dateNsec: 6, clockNs: 7n, icount: 9n };
    await disk.node.instance.snapshots?.take({ name: `s${value}`, ...clock });
  }
  await disk.backend.write(0, Buffer.alloc(8 * CLUSTER, 3));
  await disk.close();
  return shelf.disk('image').contents();
}

/** The same image, whose snapshots have so much extra data. */
export function setExtra(content: Buffer, ...lengths: number[]): Buffer {
  const image = Buffer.from(content);
  let at = Number(image.readBigUInt64BE(FieldOffset.snapshotsOffset));
  const entries = lengths.map((length) => {
    const head = Buffer.from(image.subarray(at, at + 40));
    head.writeUInt32BE(length, 36);
    const names = image.subarray(at + 64, at + 64 + head.readUInt16BE(12) + head.readUInt16BE(14));
    const entry = Buffer.concat([head, Buffer.concat([image.subarray(at + 40, at + 64)], length), names]);
    at += Math.ceil((64 + names.length) / 8) * 8;
    return Buffer.concat([entry], Math.ceil(entry.length / 8) * 8);
  });
  // The table has a cluster of its own, and goes on behind the file's end.
  const table = Buffer.concat(entries, 4 * CLUSTER);
  const grown = Buffer.concat([image, table]);
  grown.writeBigUInt64BE(BigInt(image.length), FieldOffset.snapshotsOffset);
  return grown;
}
