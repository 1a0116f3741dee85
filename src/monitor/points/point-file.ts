import { createHash } from 'node:crypto';
import { posix } from 'node:path';
import { BlockError, toBlockError } from '../../base/error.js';
import { IoVector } from '../../base/io-vector.js';
import { MiB } from '../../base/limits.js';
import type { Host, HostFile } from '../../host/host.js';
import { readBuffer } from '../../host/whole-buffers.js';
import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  type JsonValue,
  optional,
  required,
  size,
  str,
  struct,
} from '../../schema/types.js';

/** How a points file is called: DISK.points. */
export const SUFFIX = '.points';
/** The file is two slots; what is written goes into the one that does not count, and then counts. */
const SLOT_BYTES = MiB;
const HEADER_BYTES = 128;
const MAGIC = 'livedisk-points';

/** An image as it was when it was looked at last. Paths are seen from the points file's folder. */
const ImageMark = struct('PointImage', {
  file: required(str),
  identity: required(str),
  size: required(size),
  /** See HostStat.modifiedMs; fractions are text. */
  modified: required(str),
  /** The image below. */
  below: optional(str),
  /** Made for a point, so that it may be deleted when it is needed no more. */
  ours: required(bool),
});

const PointRecord = struct('PointRecord', {
  name: required(str),
  id: required(str),
  /** Seconds since 1970. */
  created: required(size),
  /** How many disks it is of. */
  disks: required(size),
  /** Holds the point. */
  image: required(str),
  /** The image right above it. */
  overlay: required(str),
  /** It is being deleted so, and no point any more. */
  deleting: optional(enumOf('PointWay', ['stream', 'commit'])),
  /** Why it is none any more, found out at a time when that showed. */
  lost: optional(str),
});

/** What is about to be done: it has been done when the overlay is on top of the chain. */
const Pending = struct('PointPending', {
  what: required(enumOf('PointVerb', ['create', 'revert'])),
  name: required(str),
  id: required(str),
  created: required(size),
  /** How many disks it is of. */
  disks: required(size),
  /** Holds the point. */
  image: required(str),
  /** The new active image. */
  overlay: required(str),
});

const PointFileContent = struct('PointFile', {
  /** What the disk is called. */
  disk: required(str),
  active: required(str),
  /** Of the disk's chain, top first. */
  images: required(arrayOf(ImageMark)),
  /** Oldest first. */
  points: required(arrayOf(PointRecord)),
  pending: optional(Pending),
});

export type ImageMark = Infer<typeof ImageMark>;
export type PointRecord = Infer<typeof PointRecord>;
export type Pending = Infer<typeof Pending>;
export type PointFileContent = Infer<typeof PointFileContent>;

/** A points file as it was read. */
export interface PointFile {
  readonly path: string;
  readonly content: PointFileContent;
  /** Of the slot that counts; 0: there is no file yet. */
  readonly sequence: number;
}

/** A path in a points file as the machine knows it. */
export function absoluteFrom(pointsPath: string, file: string): string {
  return posix.resolve(posix.dirname(posix.resolve(pointsPath)), file);
}

/** The same the other way round: within the file's folder as a name alone, so that the folder may be moved. */
export function seenFrom(pointsPath: string, path: string): string {
  const folder = posix.dirname(posix.resolve(pointsPath));
  const whole = posix.resolve(path);
  return posix.dirname(whole) === folder ? posix.basename(whole) : whole;
}

/** Errors: corrupt when neither slot is whole; those of opening and reading. */
export async function readPointFile(host: Host, path: string): Promise<PointFile> {
  const file = await host.files.open(path, { write: false });
  try {
    const slots = [await readSlot(file, 0), await readSlot(file, 1)].filter((slot) => slot !== undefined);
    const [best] = slots.sort((a, b) => b.sequence - a.sequence);
    if (!best) throw new BlockError('corrupt', `'${path}' is no points file, or is damaged`, { path });
    return { path, content: parseContent(best.text, path), sequence: best.sequence };
  } finally {
    await file.close();
  }
}

/**
 * Makes it what counts; durable on return. A crash before that leaves what counted before. Errors: limit; those of
 * writing, and then either may count.
 */
export async function writePointFile(host: Host, { path, content, sequence }: PointFile): Promise<PointFile> {
  const next = sequence + 1;
  const slot = slotBytes(next, content);
  try {
    const isNew = sequence === 0;
    const file = await host.files.open(path, { write: true, create: isNew, exclusive: isNew });
    try {
      await file.write((next % 2) * SLOT_BYTES, IoVector.of(slot), 0, slot.length);
      await file.flush();
    } finally {
      await file.close();
    }
    if (isNew) await host.files.syncDirectory(posix.dirname(posix.resolve(path)));
  } catch (error) {
    throw toBlockError(error, `Could not write '${path}'`);
  }
  return { path, content, sequence: next };
}

function slotBytes(sequence: number, content: PointFileContent): Buffer {
  const text = Buffer.from(`${JSON.stringify(content, undefined, 1)}\n`);
  if (text.length + HEADER_BYTES > SLOT_BYTES)
    throw new BlockError('limit', 'The disk has more points in time than can be kept');
  const header = `${MAGIC} ${sequence} ${text.length} ${digest(text)}`.padEnd(HEADER_BYTES - 1);
  return Buffer.concat([Buffer.from(`${header}\n`), text]);
}

async function readSlot(
  file: HostFile,
  index: number,
): Promise<{ sequence: number; text: string } | undefined> {
  const header = Buffer.alloc(HEADER_BYTES);
  await readBuffer(file, index * SLOT_BYTES, header);
  const found = /^livedisk-points ([1-9]\d{0,14}) (\d{1,7}) ([0-9a-f]{64}) *\n$/.exec(
    header.toString('latin1'),
  );
  if (!found) return undefined;
  const [sequence, length] = [Number(found[1]), Number(found[2])];
  if (sequence % 2 !== index || length > SLOT_BYTES - HEADER_BYTES) return undefined;
  const text = Buffer.alloc(length);
  await readBuffer(file, index * SLOT_BYTES + HEADER_BYTES, text);
  return digest(text) === found[3] ? { sequence, text: text.toString() } : undefined;
}

function parseContent(text: string, path: string): PointFileContent {
  try {
    return PointFileContent.parse(JSON.parse(text) as JsonValue, '', 'qmp');
  } catch (cause) {
    throw new BlockError('corrupt', `'${path}' is no points file of this version`, { path, cause });
  }
}

function digest(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
