import { assert } from '../base/assert.js';
import { alignUp, divideRoundUp } from '../base/align.js';
import { AsyncMutex } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { IoVector } from '../base/io-vector.js';
import { lastingIdentity } from '../host/file-identity.js';
import type { Host, HostFile, HostStat } from '../host/host.js';
import { type BitsPlace, ChangeLog } from './change-log.js';
import { DirtyBitmap, type Durability } from './dirty-bitmap.js';
import type { BitmapStore } from './driver.js';
import { folderOf } from './filename.js';
import type { Node } from './node.js';
import {
  BITS_OFFSET,
  decodeSideHeader,
  digestOf,
  encodeSideHeader,
  SIDE_HEADER_BYTES,
  type SideHeader,
} from './side-header.js';

/** For so long a side file says in advance that we may write, and we write until a little before. */
const LEASE_MS = 1000;
const LEASE_MARGIN_MS = 250;
const UNIT_BYTES = 512;

/** Why what a side file says of the image is of no use. */
export type SideLoss =
  'never-there' | 'replaced' | 'resized-by-another' | 'written-by-another' | 'unclean-end';

/** The file that a node's bytes are in, as its host knows it. */
interface ImageFile {
  readonly path: string;
  readonly stat: HostStat;
}

/** Bits behind the header of a side file. */
class SideBits implements BitsPlace {
  readonly #file: HostFile;
  readonly lengthBytes: number;

  constructor(file: HostFile, lengthBytes: number) {
    this.#file = file;
    this.lengthBytes = lengthBytes;
  }

  async write(byteOffset: number, bytes: Uint8Array, isDurable: boolean): Promise<void> {
    await writeTo(this.#file, BITS_OFFSET + byteOffset, bytes, isDurable);
  }
}

async function writeTo(
  file: HostFile,
  position: number,
  bytes: Uint8Array,
  isDurable: boolean,
): Promise<void> {
  const memory = IoVector.of(bytes);
  await (isDurable
    ? file.writeDurable(position, memory, 0, bytes.length)
    : file.write(position, memory, 0, bytes.length));
}

async function readFrom(file: HostFile, position: number, lengthBytes: number): Promise<Buffer> {
  const bytes = Buffer.alloc(lengthBytes);
  await file.read(position, IoVector.of(bytes), 0, lengthBytes);
  return bytes;
}

/** Errors: unsupported, where the bytes are not in one file or device of the host. */
async function imageFileOf(host: Host, node: Node): Promise<ImageFile> {
  const path = node.storage.options['filename'];
  const stat = typeof path === 'string' ? await host.files.stat(path) : undefined;
  if (typeof path !== 'string' || !stat || stat.isDirectory || stat.isSpecial !== 'no')
    throw new BlockError('unsupported', `Node '${node.label}' is not in one file that a side file can be of`);
  return { path, stat };
}

function bitsBytes(sizeBytes: number, granularityBytes: number): number {
  return Math.max(
    UNIT_BYTES,
    alignUp(divideRoundUp(divideRoundUp(sizeBytes, granularityBytes), 8), UNIT_BYTES),
  );
}

/** What a side file is to be of. */
export interface SideOf {
  readonly node: Node;
  readonly path: string;
  readonly name: string;
}

/**
 * A durable bitmap of an image that cannot keep one itself, in a file of its own (docs/TRACKING.md). That nobody else
 * writes to a file is seen by its times: before we write we say, durably, until when we may do so, a second ahead; what was
 * written later is not ours. Of a device there are no such times.
 */
export class SideBitmap implements BitmapStore {
  readonly isSupported = true;
  readonly path: string;
  /** That nobody else has written cannot be seen. */
  readonly isOfDevice: boolean;
  readonly bitmap: DirtyBitmap;
  readonly log: ChangeLog;
  readonly #host: Host;
  readonly #node: Node;
  readonly #file: HostFile;
  readonly #headerMutex = new AsyncMutex();
  #header: SideHeader;

  private constructor(
    host: Host,
    { node, path }: SideOf,
    {
      file,
      bitmap,
      header,
      isOfDevice,
    }: { file: HostFile; bitmap: DirtyBitmap; header: SideHeader; isOfDevice: boolean },
  ) {
    this.path = path;
    this.isOfDevice = isOfDevice;
    this.bitmap = bitmap;
    this.#host = host;
    this.#node = node;
    this.#file = file;
    this.#header = header;
    const lease = {
      isValid: (): boolean => this.#nowMs() < this.#header.leaseUntilMs - LEASE_MARGIN_MS,
      renew: (): Promise<void> => this.#change({ leaseUntilMs: this.#nowMs() + LEASE_MS }),
    };
    const begin = (): Promise<void> =>
      Promise.reject(new BlockError('closed', `'${path}' is not used any more`));
    this.log = new ChangeLog(host.clock, node.lengthBytes, begin, lease);
  }

  /**
   * Opens or makes the side file of a node that no change is in flight of; changes are recorded from now on. What it answers
   * as lost was there and is of no use, or was not: then the bitmap begins now, as `begins` says. `strict`: what nobody
   * can see counts as done. Errors: invalid, for a file that is something else; unsupported; those of the file.
   */
  static async attach(
    host: Host,
    of: SideOf,
    {
      granularityBytes,
      begins,
      strict,
      id,
    }: {
      granularityBytes: number;
      begins: Durability;
      strict: boolean;
      id: string | undefined;
    },
  ): Promise<{ side: SideBitmap; lost: SideLoss | undefined }> {
    const { node, path } = of;
    const image = await imageFileOf(host, node);
    const isThere = (await host.files.stat(path)) !== undefined;
    const file = await host.files.open(path, { write: true, create: true });
    try {
      const there = isThere ? decodeSideHeader(await readFrom(file, 0, SIDE_HEADER_BYTES)) : undefined;
      if (there === 'foreign' && file.sizeBytes() > 0)
        throw new BlockError('invalid', `'${path}' is no side file of a bitmap`, { path });
      const lost =
        lossOf(there, of, image, strict) ??
        lossOfLength(there, file.sizeBytes()) ??
        (id !== undefined && idOf(there) !== id ? 'replaced' : undefined);
      const before = lost === undefined && typeof there === 'object' ? there : undefined;
      const bitmap = new DirtyBitmap(node.lengthBytes, before?.granularityBytes ?? granularityBytes, of.name);
      bitmap.persistent = true;
      const header: SideHeader = {
        // What has been written by now is ours, or has been looked at: a crash before our first write loses nothing.
        ...{ leaseUntilMs: image.stat.modifiedMs, modifiedMs: 0 },
        ...{ isInUse: true, records: before?.records ?? true },
        ...{ id: before?.id ?? begins.id, sinceMs: before?.sinceMs ?? begins.sinceMs },
        ...{ granularityBytes: bitmap.granularityBytes, sizeBytes: node.lengthBytes },
        ...{ otherSizeBytes: node.lengthBytes, nameDigest: digestOf(of.name) },
        identityDigest: digestOf(lastingIdentity(image.stat)),
      };
      const isOfDevice = image.stat.isBlockDevice;
      const side = new SideBitmap(host, of, { file, bitmap, header, isOfDevice });
      await side.#begin(before !== undefined);
      // Who made the file may have been killed before its name was durable.
      await host.files.syncDirectory(folderOf(path) || '.');
      return { side, lost };
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Goes on with a side file that another process has open, and of whose node no change is in flight. Nothing is written
   * before the next change. The descriptor is closed where that fails. Errors: corrupt, for what no process leaves there;
   * those of the file.
   */
  static async adopt(
    host: Host,
    { node, path, name }: SideOf,
    { fd, bits, enabled }: { fd: number; bits: Uint8Array; enabled: boolean },
  ): Promise<SideBitmap> {
    const file = await host.files.open(path, { write: true, descriptor: fd });
    try {
      const { stat } = await imageFileOf(host, node);
      const header = decodeSideHeader(await readFrom(file, 0, SIDE_HEADER_BYTES));
      if (typeof header !== 'object' || header.sizeBytes !== node.lengthBytes)
        throw new BlockError('corrupt', `'${path}' is not the side file that was in use`, { path });
      const bitmap = new DirtyBitmap(header.sizeBytes, header.granularityBytes, name);
      bitmap.persistent = true;
      bitmap.deserialise(0, bits);
      const isOfDevice = stat.isBlockDevice;
      const side = new SideBitmap(host, { node, path, name }, { file, bitmap, header, isOfDevice });
      const place = new SideBits(file, bitsBytes(bitmap.sizeBytes, bitmap.granularityBytes));
      const bytes = await readFrom(file, BITS_OFFSET, place.lengthBytes);
      side.#activate(place, bytes, enabled);
      return side;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  #activate(place: SideBits, bytes: Buffer, enabled: boolean): void {
    const { bitmap, log } = this;
    const { id, sinceMs } = this.#header;
    bitmap.enabled = enabled;
    bitmap.durable = { id, sinceMs };
    log.activate([{ bitmap, place, bytes }]);
    log.shrunk();
  }

  /** The open file, for another process. */
  get fd(): number | undefined {
    return this.#file.descriptor;
  }

  /** The bits that are there are read, or written anew; the header says that they are in use. */
  async #begin(isKept: boolean): Promise<void> {
    const { bitmap } = this;
    const place = new SideBits(this.#file, bitsBytes(bitmap.sizeBytes, bitmap.granularityBytes));
    let bytes: Buffer = Buffer.alloc(place.lengthBytes);
    if (isKept) {
      bytes = await readFrom(this.#file, BITS_OFFSET, place.lengthBytes);
      bitmap.deserialise(0, bytes);
    } else {
      await writeTo(this.#file, 0, Buffer.alloc(SIDE_HEADER_BYTES), true);
      await place.write(0, bytes, true);
    }
    await this.#change({});
    this.#activate(place, bytes, this.#header.records);
  }

  #nowMs(): number {
    const { seconds, microseconds } = this.#host.clock.wallClock();
    return seconds * 1000 + microseconds / 1000;
  }

  /** Durable on return. */
  #change(changes: Partial<SideHeader>): Promise<void> {
    return this.#headerMutex.run(async () => {
      const header = { ...this.#header, ...changes };
      await writeTo(this.#file, 0, encodeSideHeader(header), true);
      this.#header = header;
    });
  }

  checkNew(): void {
    throw new BlockError('unsupported', `Node '${this.#node.label}' keeps one bitmap in '${this.path}'`);
  }

  async settle(bitmap: DirtyBitmap): Promise<void> {
    if (bitmap !== this.bitmap) return;
    if (bitmap.enabled !== this.#header.records) await this.#change({ records: bitmap.enabled });
    await this.log.settle();
  }

  /** The file goes, unless somebody has removed it already. No change of the node is in flight. */
  async remove(name: string): Promise<void> {
    if (name !== this.bitmap.name) return;
    this.log.abandon();
    this.#node.side = undefined;
    await this.#file.close();
    const { files } = this.#host;
    if (await files.stat(this.path)) await files.unlink(this.path);
  }

  /** Before the disk gets another size, which nobody uses meanwhile. */
  async resizing(sizeBytes: number): Promise<void> {
    const { bitmap, log } = this;
    await log.exclusive(async () => {
      const lengthBytes = bitsBytes(Math.max(sizeBytes, bitmap.sizeBytes), bitmap.granularityBytes);
      const bytes = log.image(bitmap, lengthBytes);
      const place = new SideBits(this.#file, lengthBytes);
      await place.write(0, bytes, true);
      await this.#change({ otherSizeBytes: sizeBytes });
      log.activate([{ bitmap, place, bytes }]);
    });
  }

  /** It has it. */
  async resized(): Promise<void> {
    const { lengthBytes } = this.#node;
    await this.#change({ sizeBytes: lengthBytes, otherSizeBytes: lengthBytes });
  }

  /** The node is about to be closed: nothing changes it any more. */
  async end(): Promise<void> {
    await this.log.end();
    await this.#file.flush();
  }

  /** The node is closed, and all of it is in its image: what is written to that from now on is not ours. */
  async close(isWhole: boolean): Promise<void> {
    try {
      const { sizeBytes, granularityBytes } = this.bitmap;
      const { stat } = await imageFileOf(this.#host, this.#node);
      const isAlike = digestOf(lastingIdentity(stat)).equals(this.#header.identityDigest);
      const isCovered =
        sizeBytes === this.#header.sizeBytes && granularityBytes === this.#header.granularityBytes;
      if (!isWhole || !isAlike || !isCovered || this.#node.activity !== 'active') return;
      await this.#change({ isInUse: false, modifiedMs: stat.modifiedMs });
    } finally {
      await this.#file.close();
    }
  }
}

function idOf(there: ReturnType<typeof decodeSideHeader> | undefined): string | undefined {
  return typeof there === 'object' ? there.id : undefined;
}

function lossOf(
  there: ReturnType<typeof decodeSideHeader> | undefined,
  { node, name }: SideOf,
  { stat }: ImageFile,
  strict: boolean,
): SideLoss | undefined {
  if (there === undefined || there === 'foreign') return 'never-there';
  if (there === 'broken') return 'unclean-end';
  assert(typeof there === 'object', 'a header that was read');
  if (
    !there.nameDigest.equals(digestOf(name)) ||
    !there.identityDigest.equals(digestOf(lastingIdentity(stat)))
  )
    return 'replaced';
  if (node.lengthBytes !== there.sizeBytes && !(there.isInUse && node.lengthBytes === there.otherSizeBytes))
    return 'resized-by-another';
  // By this daemon too, before it was asked.
  if (node.wasChanged) return 'written-by-another';
  if (stat.isBlockDevice) return strict && there.isInUse ? 'unclean-end' : undefined;
  const isForeign = there.isInUse
    ? stat.modifiedMs > there.leaseUntilMs
    : stat.modifiedMs !== there.modifiedMs;
  return isForeign ? 'written-by-another' : undefined;
}

/** What is not there of the bits would read as if nothing had changed. */
function lossOfLength(
  there: ReturnType<typeof decodeSideHeader> | undefined,
  fileBytes: number,
): SideLoss | undefined {
  if (typeof there !== 'object') return undefined;
  const needed = BITS_OFFSET + bitsBytes(there.sizeBytes, there.granularityBytes);
  return fileBytes < needed ? 'unclean-end' : undefined;
}
