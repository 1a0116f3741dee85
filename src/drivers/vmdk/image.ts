import { alignUp } from '../../base/align.js';
import { AsyncMutex } from '../../base/async.js';
import { BlockError, errnoError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type {
  ChildIo,
  DriverContext,
  DriverInfo,
  ImageCheck,
  Json,
  NamedFile,
  RepairMode,
} from '../../block/driver.js';
import { newMapping } from '../../block/request.js';
import { nothingFound } from '../tables/check-result.js';
import type { OpenedFormat } from '../tables/format-node.js';
import { readBytes } from '../tables/read-bytes.js';
import {
  type Descriptor,
  type ExtentLine,
  hexCid,
  MAX_DESCRIPTOR_BYTES,
  NO_CID,
  parseDescriptor,
  parseExtents,
  withCid,
} from './descriptor.js';
import { type Extent, flatExtent, readSparseHeader, sparseExtent } from './extent.js';
import { ExtentsMap } from './extents-map.js';
import { ESX_MAGIC, hasMagic, MAGIC, SECTOR_BYTES, type SparseHeader } from './sparse-header.js';

/** The create types whose extents QEMU opens from a descriptor in a file of its own. */
const CREATE_TYPES = [
  'monolithicFlat',
  'vmfs',
  'vmfsSparse',
  'seSparse',
  'twoGbMaxExtentSparse',
  'twoGbMaxExtentFlat',
];

/** Where the descriptor is, and how much room it has. */
interface DescriptorPlace {
  readonly offset: number;
  readonly maxBytes: number;
}

/** A file that is no extent itself names its extents. */
export async function namedExtents(driver: DriverContext): Promise<NamedFile[]> {
  const lines = await extentLines(driver.child('file'));
  return lines.flatMap(({ filename, type }, index) =>
    type === 'ZERO' ? [] : [{ role: `extents.${index}`, filename, what: 'extent' }],
  );
}

async function extentLines(file: ChildIo): Promise<ExtentLine[]> {
  const text = await readDescriptorFile(file);
  return text ? parseExtents(parseDescriptor(text).text) : [];
}

/** Undefined where the file is an extent with its own descriptor. */
async function readDescriptorFile(file: ChildIo): Promise<Buffer | undefined> {
  const first = await readBytes(file, 0, MAGIC.length);
  if (hasMagic(first, MAGIC) || hasMagic(first, ESX_MAGIC)) return undefined;
  return readBytes(file, 0, Math.min(file.lengthBytes, MAX_DESCRIPTOR_BYTES));
}

export async function loadVmdk(
  driver: DriverContext,
  _settings: unknown,
  mayWrite: boolean,
): Promise<OpenedFormat> {
  const file = driver.child('file');
  const text = await readDescriptorFile(file);
  if (text) return loadSplit(driver, file, parseDescriptor(text), text.length);
  const header = await readSparseHeader(file);
  const { filename } = driver;
  const extent = sparseExtent(driver, file, header, { filename, type: '' });
  const place = descriptorPlace(header);
  const descriptor = place
    ? parseDescriptor(await readBytes(file, place.offset, place.maxBytes))
    : NO_DESCRIPTOR;
  // New grains would lie behind the footer, and nobody would find it any more.
  if (header.hasFooter && mayWrite)
    throw new BlockError('unsupported', 'VMDK with a footer must be read only', { errno: 'EINVAL' });
  // Others than streams may be of version 3, which is not documented for writing.
  if (header.version === 3 && mayWrite && descriptor.createType !== 'streamOptimized')
    throw new BlockError('unsupported', 'VMDK version 3 must be read only', { errno: 'EINVAL' });
  return new VmdkImage({ driver, descriptor, place, extents: [extent] });
}

const NO_DESCRIPTOR: Descriptor = {
  text: '',
  cid: 0,
  parentCid: NO_CID,
  createType: '',
  parentName: undefined,
};

function descriptorPlace({ descriptorSector, descriptorSectors }: SparseHeader): DescriptorPlace | undefined {
  if (descriptorSector === 0) return undefined;
  const maxBytes = Math.min(MAX_DESCRIPTOR_BYTES, Math.max(1, descriptorSectors) * SECTOR_BYTES);
  return { offset: descriptorSector * SECTOR_BYTES, maxBytes };
}

async function loadSplit(
  driver: DriverContext,
  file: ChildIo,
  descriptor: Descriptor,
  descriptorBytes: number,
): Promise<OpenedFormat> {
  const { createType } = descriptor;
  if (!CREATE_TYPES.includes(createType))
    throw new BlockError('unsupported', `Unsupported image type '${createType}'`, { errno: 'ENOTSUP' });
  const lines = parseExtents(descriptor.text);
  const extents = await Promise.all(lines.map((line, index) => openExtent(driver, line, index)));
  const maxBytes = Math.max(descriptorBytes, 20 * SECTOR_BYTES);
  return new VmdkImage({ driver, descriptor, place: { offset: 0, maxBytes }, extents, events: file });
}

async function openExtent(driver: DriverContext, line: ExtentLine, index: number): Promise<Extent> {
  const { sectors, type } = line;
  const role = `extents.${index}`;
  const filename = driver.nameOf(line.filename);
  if (type === 'SESPARSE')
    throw new BlockError('unsupported', 'seSparse extents are not supported', { errno: 'ENOTSUP' });
  if (!driver.hasChild(role)) {
    // Only looked at.
    const file = driver.child('file');
    const lengthBytes = sectors * SECTOR_BYTES;
    return {
      lengthBytes,
      unitBytes: SECTOR_BYTES,
      file,
      filename,
      type,
      map: undefined,
      flush: async () => undefined,
    };
  }
  const file = driver.child(role);
  if (type === 'FLAT' || type === 'VMFS') return flatExtent(file, { ...line, filename });
  return sparseExtent(driver, file, await readSparseHeader(file), { filename, type });
}

interface Parts {
  readonly driver: DriverContext;
  readonly descriptor: Descriptor;
  readonly place: DescriptorPlace | undefined;
  readonly extents: readonly Extent[];
  readonly events?: ChildIo;
}

class VmdkImage implements OpenedFormat {
  readonly map: ExtentsMap | LookedAt;
  readonly lengthBytes: number;
  readonly #p: Parts;
  readonly #descriptorLock = new AsyncMutex();
  #cid: number;
  #text: string;
  #hasBegun = false;
  #isParentChecked = false;

  constructor(parts: Parts) {
    const { driver, descriptor, extents } = parts;
    this.#p = parts;
    this.#cid = descriptor.cid;
    this.#text = descriptor.text;
    this.lengthBytes = extents.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    if (!Number.isSafeInteger(this.lengthBytes)) throw errnoError('EFBIG');
    const events = parts.events ?? driver.child('file');
    this.map = extents.some(({ map }) => !map)
      ? new LookedAt(events)
      : new ExtentsMap({
          extents,
          events,
          begin: () => this.#begin(),
          hasBegun: () => this.#hasBegun,
          checkParent: () => this.#checkParent(),
        });
  }

  get backing(): { filename: string; format?: string } | undefined {
    const { parentName } = this.#p.descriptor;
    return parentName === undefined || parentName === ''
      ? undefined
      : { filename: parentName, format: 'vmdk' };
  }

  get canWriteZeroes(): boolean {
    return this.#p.extents.every(({ header }) => header?.hasZeroGrains === true);
  }

  /** A disk that changes is another one, to those who have it as their parent. */
  async #begin(): Promise<void> {
    if (this.#hasBegun) return;
    await this.#descriptorLock.run(async () => {
      if (this.#hasBegun) return;
      const { place, driver } = this.#p;
      if (place) await this.#writeCid(place, 1 + driver.host.random.below(NO_CID - 1));
      this.#hasBegun = true;
    });
  }

  /** The sectors in which it is; a text of another length as a whole. */
  async #writeCid({ offset, maxBytes }: DescriptorPlace, cid: number): Promise<void> {
    const text = withCid(this.#text, cid);
    const file = this.#p.driver.child('file');
    const bytes = Buffer.from(text, 'latin1');
    if (bytes.length > maxBytes) throw errnoError('ENOSPC');
    const before = Buffer.from(this.#text, 'latin1');
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
      const sector = bytes.subarray(at, at + SECTOR_BYTES);
      if (!sector.equals(before.subarray(at, at + SECTOR_BYTES))) await file.write(offset + at, sector, 0);
    }
    await file.flush();
    this.#text = text;
    this.#cid = cid;
  }

  /** Errors: invalid when the parent has changed since. */
  #checkParent(): void {
    const { driver, descriptor } = this.#p;
    if (this.#isParentChecked || !driver.hasChild('backing')) return;
    const data = driver.child('backing').driverInfo().formatSpecific;
    const { cid } = (data?.['type'] === 'vmdk' ? data['data'] : {}) as { cid?: number };
    if (cid !== undefined && cid !== descriptor.parentCid)
      throw new BlockError('invalid', 'Invalid argument', {
        errno: 'EINVAL',
        hint: `The parent has the CID ${hexCid(cid)}, not ${hexCid(descriptor.parentCid)}: it was changed since.`,
      });
    this.#isParentChecked = true;
  }

  async flush(): Promise<void> {
    for (const extent of this.#p.extents) await extent.flush();
  }

  end(): Promise<void> {
    return this.flush();
  }

  info(): DriverInfo {
    const { descriptor, extents } = this.#p;
    const grains = extents.map(({ header, unitBytes }) => (header ? unitBytes : undefined));
    const clusterSizeBytes = grains[0];
    return {
      ...(clusterSizeBytes !== undefined && { clusterSizeBytes }),
      formatSpecific: {
        type: 'vmdk',
        data: {
          cid: this.#cid,
          'parent-cid': descriptor.parentCid,
          'create-type': descriptor.createType,
          extents: extents.map(extentInfo),
        },
      },
    };
  }

  /** Every grain is in the file that it is said to be in. */
  async check(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck> {
    if (repair !== 'none') throw errnoError('ENOTSUP');
    let start = 0;
    for (const extent of this.#p.extents) {
      await this.#checkExtent(extent, start, say);
      start += extent.lengthBytes;
    }
    return nothingFound();
  }

  async #checkExtent(
    { map, file, lengthBytes, header, unitBytes }: Extent,
    start: number,
    say: (line: string) => void,
  ): Promise<void> {
    if (!map || !header) return;
    const mapping = newMapping();
    for (let at = 0; at < lengthBytes; at += mapping.lengthBytes) {
      const most = header.isCompressed ? Math.min(unitBytes, lengthBytes - at) : lengthBytes - at;
      await map.map(at, most, mapping);
      const last = mapping.hostOffset + Math.max(0, mapping.lengthBytes - unitBytes);
      if (mapping.kind !== 'data' || last < file.lengthBytes) continue;
      const inFile = alignUp(Math.max(0, file.lengthBytes - mapping.hostOffset), unitBytes);
      say(`ERROR: cluster offset for sector ${(start + at + inFile) / SECTOR_BYTES} points after EOF`);
      throw errnoError('EINVAL');
    }
  }
}

function extentInfo({ lengthBytes, filename, type, header, unitBytes }: Extent): Json {
  return given({
    compressed: header?.isCompressed === true ? true : undefined,
    'virtual-size': lengthBytes,
    filename,
    'cluster-size': header ? unitBytes : undefined,
    format: type,
  });
}

/** Of an image whose extents are not open: nobody reads it. */
class LookedAt {
  readonly clusterBytes = SECTOR_BYTES;
  readonly unitBytes = SECTOR_BYTES;
  readonly events: ChildIo;

  constructor(events: ChildIo) {
    this.events = events;
  }

  tryMap(): never {
    throw errnoError('EIO', 'The extents of the image are not open');
  }

  async map(): Promise<never> {
    return this.tryMap();
  }

  async reserve(): Promise<never> {
    return this.tryMap();
  }

  async zeroClusters(): Promise<never> {
    return this.tryMap();
  }

  async discardClusters(): Promise<never> {
    return this.tryMap();
  }
}
