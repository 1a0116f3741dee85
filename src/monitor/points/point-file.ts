import { createHash } from 'node:crypto';
import { posix } from 'node:path';
import { BlockError, toBlockError } from '../../base/error.js';
import { writeBuffer } from '../../host/whole-buffers.js';
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
/** Of a file that is new. */
const FIRST_SEQUENCE = 1;
/** Of the file, held while it is written; and while its disk gets a new active image. */
const LOCK_BYTE = 0;
const VERB_BYTE = 1;
const LOCK_TRIES = 200;
/** Images that a disk has left and that are still known as its own. */
export const MAX_LEFT_IMAGES = 100;
/** Files that are to be removed and could not be. */
export const MAX_UNNEEDED_FILES = 100;

/** An image as it was when it was looked at last. Paths are seen from the points file's folder. */
const ImageMark = struct('PointImage', {
  file: required(str),
  identity: required(str),
  /** See HostStat.bornMs. */
  born: optional(str),
  size: required(size),
  /** See HostStat.modifiedMs; fractions are text. */
  modified: required(str),
  /** The image below. */
  below: optional(str),
  /** Made for a point, so that it may be deleted when it is needed no more. */
  ours: required(bool),
});

/** A file that was made for a point and is to be removed. */
const UnneededFile = struct('PointUnneededFile', {
  file: required(str),
  /** Which file it is: another one may have its name by then. Of one that may never have been made: not known. */
  identity: optional(str),
  born: optional(str),
  /** The image that it names as its backing file, where it is not known. */
  on: optional(str),
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
  /** Images made for points that the disk does without when it has been deleted. */
  ends: optional(arrayOf(UnneededFile)),
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
  /** The socket of a guest's agent that is to freeze its file systems meanwhile. */
  agent: optional(str),
});

const PointFileContent = struct('PointFile', {
  /** What the disk is called. */
  disk: required(str),
  active: required(str),
  /** The points file itself: this one lies in another folder of the disk's images, and only tells where that is. */
  at: optional(str),
  /** Of the disk's chain, top first. */
  images: required(arrayOf(ImageMark)),
  /** Oldest first. */
  points: required(arrayOf(PointRecord)),
  pending: optional(Pending),
  /** The socket of the agent of a guest that who made a point had frozen: not known to be thawed again. */
  frozen: optional(str),
  /** What were active images when the disk went back to a point, the last ones. */
  left: optional(arrayOf(str)),
  /** Made for points and needed no more: they are removed at the next change, where nobody has them open or stands on them. */
  unneeded: optional(arrayOf(UnneededFile)),
});

export type ImageMark = Infer<typeof ImageMark>;
export type UnneededFile = Infer<typeof UnneededFile>;
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

/** Another program has written the file since it was read. */
export class PointsChangedError extends BlockError {
  constructor(path: string, context: { cause?: unknown } = {}) {
    const hint = 'Ask again: what is there now will be looked at.';
    super('busy', `another program has changed '${path}' meanwhile`, { path, hint, ...context });
  }
}

/** Errors: corrupt when neither slot is whole; those of opening and reading. */
export async function readPointFile(host: Host, path: string): Promise<PointFile> {
  const file = await host.files.open(path, { write: false });
  try {
    const best = await readNewest(file);
    if (!best) throw new BlockError('corrupt', `'${path}' is no points file, or is damaged`, { path });
    return { path, content: parseContent(best.text, path), sequence: best.sequence };
  } finally {
    await file.close();
  }
}

async function readNewest(file: HostFile): Promise<Slot | undefined> {
  const slots = [await readSlot(file, 0), await readSlot(file, 1)].filter((slot) => slot !== undefined);
  return slots.sort((a, b) => b.sequence - a.sequence)[0];
}

/**
 * Makes it what counts; durable on return. A crash before that leaves what counted before, which may be no file. Errors:
 * PointsChangedError, where another program has written or made the file since it was read; limit; those of writing, and
 * then of a file either slot may count.
 */
export async function writePointFile(host: Host, { path, content, sequence }: PointFile): Promise<PointFile> {
  const next = sequence + 1;
  const slot = slotBytes(next, content);
  try {
    if (sequence === 0) await createWhole(host, path, slot, next);
    else await writeOver(host, path, slot, next);
  } catch (error) {
    if (error instanceof PointsChangedError) throw error;
    throw toBlockError(error, `Could not write '${path}'`);
  }
  return { path, content, sequence: next };
}

/** Where it is still what `sequence` follows. */
async function writeOver(host: Host, path: string, slot: Buffer, sequence: number): Promise<void> {
  const file = await host.files.open(path, { write: true });
  try {
    await lock(host, file);
    if ((await readNewest(file))?.sequence !== sequence - 1) throw new PointsChangedError(path);
    await removeCutShort(host, path);
    // Who made it may have been killed before its name was durable.
    if (sequence === FIRST_SEQUENCE + 1) await host.files.syncDirectory(posix.dirname(posix.resolve(path)));
    await writeInto(file, slot, sequence);
  } finally {
    await file.close();
  }
}

/** Errors: busy. */
async function lock({ clock, random }: Host, file: HostFile): Promise<void> {
  for (let tries = 0; tries < LOCK_TRIES; tries++) {
    if (file.lockByteShared(LOCK_BYTE) && !file.isByteLockedByOther(LOCK_BYTE)) return;
    file.unlockByte(LOCK_BYTE);
    await clock.sleep(1 + random.below(10));
  }
  throw new BlockError('busy', 'another program is writing it');
}

/** Held by who makes a point of a disk or goes back to one, from before that is written down until it is done or given up. */
export class PointVerb {
  readonly #file: HostFile;

  private constructor(file: HostFile) {
    this.#file = file;
  }

  /** Of a file that is there. Errors: busy; those of opening. */
  static async begin({ files }: Host, path: string): Promise<PointVerb> {
    const file = await files.open(path, { write: false });
    if (file.lockByteShared(VERB_BYTE) && !file.isByteLockedByOther(VERB_BYTE)) return new PointVerb(file);
    await file.close();
    throw new BlockError(
      'busy',
      `another program is making or going back to a point that is kept in '${path}'`,
      {
        hint: 'Ask again when it is done.',
      },
    );
  }

  end(): Promise<void> {
    return this.#file.close();
  }
}

/** Whether what the file says that is about to be done may still be. */
export async function isVerbRunning({ files }: Host, path: string): Promise<boolean> {
  const file = await files.open(path, { write: false });
  try {
    return file.isByteLockedByOther(VERB_BYTE);
  } finally {
    await file.close();
  }
}

/** One that is cut short would be damaged for ever: it is made beside its place, and put there when it is durable. */
async function createWhole(host: Host, path: string, slot: Buffer, sequence: number): Promise<void> {
  const { files, random } = host;
  await removeCutShort(host, path);
  const beside = `${path}.${random.bytes(4).toString('hex')}.new`;
  try {
    const file = await files.open(beside, { write: true, create: true, truncate: true });
    try {
      await writeInto(file, slot, sequence);
    } finally {
      await file.close();
    }
    await putInPlace(host, beside, path);
    await files.syncDirectory(posix.dirname(posix.resolve(path)));
  } finally {
    await files.unlink(beside).catch(() => undefined);
  }
}

/** Of those who were about to make the file: one who still is finds it made by another. */
export async function removeCutShort({ files }: Host, path: string): Promise<void> {
  const folder = posix.dirname(path);
  for (const name of await files.list(folder))
    if (name.startsWith(`${posix.basename(path)}.`) && name.endsWith('.new'))
      await files.unlink(posix.join(folder, name)).catch(() => undefined);
}

/** Errors: PointsChangedError; those of files. */
async function putInPlace({ files }: Host, beside: string, path: string): Promise<void> {
  try {
    await files.link(beside, path);
  } catch (cause) {
    if (await files.stat(path)) throw new PointsChangedError(path, { cause });
    // Some file systems have no second names.
    await files.rename(beside, path);
  }
}

async function writeInto(file: HostFile, slot: Buffer, sequence: number): Promise<void> {
  await writeBuffer(file, (sequence % 2) * SLOT_BYTES, slot);
  await file.flush();
}

function slotBytes(sequence: number, content: PointFileContent): Buffer {
  const text = Buffer.from(`${JSON.stringify(content, undefined, 1)}\n`);
  if (text.length + HEADER_BYTES > SLOT_BYTES)
    throw new BlockError('limit', 'The disk has more points in time than can be kept');
  const header = `${MAGIC} ${sequence} ${text.length} ${digest(text)}`.padEnd(HEADER_BYTES - 1);
  return Buffer.concat([Buffer.from(`${header}\n`), text]);
}

interface Slot {
  readonly sequence: number;
  readonly text: string;
}

async function readSlot(file: HostFile, index: number): Promise<Slot | undefined> {
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
