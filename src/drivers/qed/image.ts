import { alignDown, alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import type { ChildIo, DriverContext, ImageCheck, RepairMode } from '../../block/driver.js';
import { Flag, newMapping } from '../../block/request.js';
import { BlockMap } from '../tables/block-map.js';
import { EntryCache } from '../tables/entry-cache.js';
import { FileEnd } from '../tables/file-end.js';
import type { OpenedFormat } from '../tables/format-node.js';
import { readBytes } from '../tables/read-bytes.js';
import { checkQed } from './check.js';
import {
  encodeHeader,
  Feature,
  hasFeature,
  HEADER_BYTES,
  isImageSize,
  parseHeader,
  type QedHeader,
  SECTOR_BYTES,
} from './header.js';
import { QedTable } from './table.js';

const MAX_NAME_BYTES = 1023;

/** One that was not closed is checked first where it may be written. */
export async function loadQed(
  driver: DriverContext,
  _settings: unknown,
  mayWrite: boolean,
): Promise<OpenedFormat> {
  const file = driver.child('file');
  const header = await readHeader(file);
  if (hasFeature(header.features, Feature.needCheck) && mayWrite && !driver.forCheck) {
    await checkQed(file, header, true);
    await writeHeader(file, withoutFeature(header, Feature.needCheck));
  }
  return new QedImage(driver, file, await readHeader(file), await readName(file, header));
}

async function readHeader(file: ChildIo): Promise<QedHeader> {
  return parseHeader(await readBytes(file, 0, HEADER_BYTES), file.lengthBytes);
}

function withoutFeature(header: QedHeader, feature: number): QedHeader {
  const features = hasFeature(header.features, feature) ? header.features - feature : header.features;
  return { ...header, features };
}

async function readName(file: ChildIo, header: QedHeader): Promise<string | undefined> {
  const { features, nameOffset, nameBytes } = header;
  if (!hasFeature(features, Feature.backingFile)) return undefined;
  return (await readBytes(file, nameOffset, nameBytes)).toString('utf8').split('\0')[0];
}

/** In the sector of the header may be a backing file's name too. */
async function writeHeader(file: ChildIo, header: QedHeader): Promise<void> {
  const sector = await readBytes(file, 0, SECTOR_BYTES);
  encodeHeader(header).copy(sector, 0, 0, HEADER_BYTES);
  await file.write(0, sector, 0);
  await file.flush();
}

class QedImage implements OpenedFormat {
  readonly map: BlockMap;
  readonly canWriteZeroes = true;
  readonly #driver: DriverContext;
  readonly #file: ChildIo;
  readonly #cache: EntryCache;
  #header: QedHeader;
  #name: string | undefined;

  constructor(driver: DriverContext, file: ChildIo, header: QedHeader, name: string | undefined) {
    this.#driver = driver;
    this.#file = file;
    this.#header = header;
    this.#name = name;
    this.#cache = new EntryCache(file);
    const space = new FileEnd(file, alignUp(file.lengthBytes, header.clusterBytes), header.clusterBytes);
    const table = new QedTable(this.#cache, space, header, () => this.#begin());
    this.map = new BlockMap({
      file,
      table,
      space,
      blockBytes: header.clusterBytes,
      hasZeroes: true,
      hasBacking: () => driver.hasChild('backing'),
      isDirty: () => this.#cache.isDirty,
    });
  }

  get lengthBytes(): number {
    return this.#header.sizeBytes;
  }

  get backing(): { filename: string; format?: string } | undefined {
    if (this.#name === undefined) return undefined;
    const isRaw = hasFeature(this.#header.features, Feature.backingIsRaw);
    return { filename: this.#name, ...(isRaw && { format: 'raw' }) };
  }

  /** What autoclear features promise holds no longer. The order of writes leaves nothing to check (docs/CRASH-SAFETY.md). */
  async #begin(): Promise<void> {
    if (this.#header.autoclear === 0n) return;
    await this.#change({ ...this.#header, autoclear: 0n });
  }

  async #change(header: QedHeader): Promise<void> {
    await writeHeader(this.#file, header);
    this.#header = header;
  }

  flush(): Promise<void> {
    return this.#cache.writeBack();
  }

  end(): Promise<void> {
    return this.#cache.writeBack();
  }

  info(): { clusterSizeBytes: number; isDirty: boolean } {
    const { clusterBytes, features } = this.#header;
    return { clusterSizeBytes: clusterBytes, isDirty: hasFeature(features, Feature.needCheck) };
  }

  async check(repair: RepairMode): Promise<ImageCheck> {
    const result = await checkQed(this.#file, this.#header, repair === 'all');
    if (repair === 'all' && hasFeature(this.#header.features, Feature.needCheck))
      await this.#change(withoutFeature(this.#header, Feature.needCheck));
    return result;
  }

  /** Grows; what is behind the old end reads as zeroes before the header names the new one. */
  async truncate(sizeBytes: number): Promise<void> {
    const { clusterBytes, tableClusters, sizeBytes: oldSize } = this.#header;
    if (!isImageSize(sizeBytes, clusterBytes, tableClusters))
      throw new BlockError('invalid', 'Invalid image size specified', { errno: 'EINVAL' });
    if (sizeBytes < oldSize)
      throw new BlockError('unsupported', 'Shrinking images is currently not supported', {
        errno: 'ENOTSUP',
      });
    await this.#zeroTail(oldSize, Math.min(sizeBytes, alignUp(oldSize, clusterBytes)));
    const below = this.#driver.hasChild('backing') ? this.#driver.child('backing').lengthBytes : 0;
    if (below === 0 && this.#name !== undefined)
      throw new BlockError('unsupported', 'Cannot grow the image: its backing file is not open', {
        errno: 'ENOTSUP',
      });
    const from = alignUp(oldSize, clusterBytes);
    const end = alignUp(Math.min(sizeBytes, below), clusterBytes);
    if (end > from) await this.map.zeroClusters(from, end - from, Flag.mayUnmap);
    await this.#cache.writeBack();
    await this.#change({ ...this.#header, sizeBytes });
  }

  /** Of the last cluster. */
  async #zeroTail(from: number, end: number): Promise<void> {
    const start = alignDown(from, this.#header.clusterBytes);
    if (end <= from) return;
    const mapping = newMapping();
    await this.map.map(start, this.#header.clusterBytes, mapping);
    if (mapping.kind === 'data')
      return this.#file.writeZeroes(mapping.hostOffset + from - start, end - from, 0);
    if (mapping.kind === 'zero' || !this.#driver.hasChild('backing')) return;
    const backing = this.#driver.child('backing');
    if (backing.lengthBytes <= from) return;
    const bytes = Buffer.alloc(this.#header.clusterBytes);
    await backing.read(start, bytes.subarray(0, from - start));
    const reservation = await this.map.reserve(start, bytes.length);
    try {
      await this.#file.write(reservation.hostOffset, bytes, 0);
      reservation.link();
    } catch (error) {
      reservation.abort();
      throw error;
    }
  }

  /** A name that does not fit into the first sector comes to where the old one is not, and is durable first. */
  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    let header = withoutFeature(withoutFeature(this.#header, Feature.backingFile), Feature.backingIsRaw);
    const name = Buffer.from(filename ?? '', 'utf8');
    if (name.length > MAX_NAME_BYTES) throw errnoError('EINVAL');
    await this.#cache.writeBack();
    if (name.length === 0) {
      await this.#change({ ...header, nameOffset: 0, nameBytes: 0 });
      this.#name = undefined;
      return;
    }
    const nameOffset =
      this.#header.nameOffset === SECTOR_BYTES ? SECTOR_BYTES + MAX_NAME_BYTES : SECTOR_BYTES;
    await this.#file.write(nameOffset, name, 0);
    await this.#file.flush();
    const features = header.features + Feature.backingFile + (format === 'raw' ? Feature.backingIsRaw : 0);
    header = { ...header, features, nameOffset, nameBytes: name.length };
    await this.#change(header);
    this.#name = filename;
  }
}
