import { BlockError } from '../../../base/error.js';
import { given } from '../../../base/given.js';
import type { ImageAmendment } from '../../../block/driver.js';
import { newMapping } from '../../../block/request.js';
import { dataFileOf } from '../disk/header.js';
import { ExtensionType, type HeaderExtension } from '../disk/header-extensions.js';
import { AUTOCLEAR_RAW_DATA, COMPATIBLE_LAZY_REFCOUNTS } from '../disk/layout.js';
import type { ImageContext } from '../image.js';
import { unallocateClusters } from '../mapping/zeroing.js';
import { writeData } from '../mapping/guest-data.js';
import type { OpenImage } from '../open-image.js';
import { changeRefcountWidth } from '../space/refcount-width.js';
import { changeHeader, type HeaderChange } from './header-change.js';

const V2_REFCOUNT_BITS = 16;
const MAX_REFCOUNT_BITS = 64;

/** What is done by others in between. */
interface OtherSteps {
  keySlots: () => Promise<void>;
  resize: () => Promise<void>;
}

/**
 * Changes an image to what is asked for; durable on return. What needs a newer version comes after that, and an older
 * version last. Errors: unsupported, invalid, in QEMU's words, before anything is changed but for those of resizing and
 * of an older version; those of writing. The image is sound after each of them.
 */
export async function amendImage(
  image: OpenImage,
  changes: Omit<ImageAmendment, 'keySlots' | 'resize'>,
  { keySlots, resize }: OtherSteps,
): Promise<void> {
  const { context } = image;
  const { header } = context;
  context.assertMayWrite();
  const { version = header.version, refcountBits = 2 ** header.refcountOrder } = changes;
  checkAmendment(context, changes, { version, refcountBits });
  await context.beginChanges();
  if (version > header.version) await changeHeader(context, { version, compatible: 0n });
  const refcountOrder = Math.log2(refcountBits);
  if (refcountOrder !== header.refcountOrder) {
    await image.writeBack.flushAll();
    await changeRefcountWidth(image, refcountOrder);
  }
  await keySlots();
  if (header.version >= 3) await changeFeatures(context, changes);
  await resize();
  if (version >= header.version) return;
  await prepareDowngrade(image);
  await changeHeader(context, { version, compatible: 0n });
}

/** Errors: invalid, in the order in which QEMU looks. */
function checkAmendment(
  { header }: ImageContext,
  { lazyRefcounts, dataFile, dataFileRaw, backing }: ImageAmendment,
  { version, refcountBits }: { version: number; refcountBits: number },
): void {
  const refuse = (text: string, hint?: string): never => {
    throw new BlockError('invalid', text, { errno: 'EINVAL', ...given({ hint }) });
  };
  const now = dataFileOf(header);
  if (dataFile !== undefined && !now)
    refuse('data-file can only be set for images that use an external data file');
  if (dataFileRaw === true && now?.isRaw !== true) refuse('data-file-raw cannot be set on existing images');
  if (!Number.isInteger(Math.log2(refcountBits)) || refcountBits > MAX_REFCOUNT_BITS)
    refuse('Refcount width must be a power of two and may not exceed 64 bits');
  const needsNewer = 'compatibility level 1.1 or above (use compat=1.1 or greater)';
  if (version < 3 && ![V2_REFCOUNT_BITS, 2 ** header.refcountOrder].includes(refcountBits))
    refuse(`Refcount widths other than ${V2_REFCOUNT_BITS} bits require ${needsNewer}`);
  const { filename, format } = header.backing ?? {};
  if (backing && (backing.filename !== filename || backing.format !== format))
    refuse('Cannot amend the backing file', "You can use 'qemu-img rebase' instead.");
  if (lazyRefcounts === true && version < 3)
    refuse(`Lazy refcounts only supported with ${needsNewer.replace(' or ', ' and ')}`);
}

/** What the header of version 3 says of them, in one step. */
async function changeFeatures(
  context: ImageContext,
  { lazyRefcounts, dataFile, dataFileRaw }: ImageAmendment,
): Promise<void> {
  const { header } = context;
  const wasLazy = (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n;
  const isLazy = lazyRefcounts ?? wasLazy;
  const change: HeaderChange = {};
  if (isLazy !== wasLazy) change.compatible = header.compatible ^ COMPATIBLE_LAZY_REFCOUNTS;
  if (dataFileRaw === false && dataFileOf(header)?.isRaw === true)
    change.autoclear = header.autoclear & ~AUTOCLEAR_RAW_DATA;
  if (dataFile !== undefined && dataFile !== (dataFileOf(header)?.name ?? ''))
    change.extensions = withDataFile(header.extensions, dataFile);
  if (Object.keys(change).length > 0) await changeHeader(context, change);
}

function withDataFile(extensions: readonly HeaderExtension[], name: string): HeaderExtension[] {
  const type = ExtensionType.dataFile;
  const others = extensions.filter((extension) => extension.type !== type);
  return name === '' ? others : [...others, { type, data: Buffer.from(name, 'utf8') }];
}

/** Version 2 has no zero clusters: they become data. Errors: unsupported. */
async function prepareDowngrade(image: OpenImage): Promise<void> {
  const { header } = image.context;
  const refuse = (why: string): never => {
    throw new BlockError('unsupported', why, { errno: 'ENOTSUP' });
  };
  if (2 ** header.refcountOrder !== V2_REFCOUNT_BITS) refuse('compat=0.10 requires refcount_bits=16');
  if (image.context.l2.hasDataFile) refuse('Cannot downgrade an image with a data file');
  if (header.snapshotCount > 0) refuse('Internal snapshots prevent downgrade of image');
  if (header.incompatible !== 0n)
    refuse(`Cannot downgrade an image with incompatible features 0x${header.incompatible.toString(16)} set`);
  if (image.bitmaps.infos !== undefined) refuse('Cannot downgrade an image that keeps bitmaps');
  await writeOutZeroes(image);
  await image.writeBack.flushAll();
}

async function writeOutZeroes(image: OpenImage): Promise<void> {
  const { context, mapper, reserver } = image;
  const { clusterBytes, header, driver } = context;
  const hasBacking = header.backing !== undefined || driver.hasChild('backing');
  const mapping = newMapping();
  for (let at = 0; at < header.sizeBytes;) {
    await mapper.map(at, Math.min(PIECE_CLUSTERS * clusterBytes, header.sizeBytes - at), mapping);
    if (mapping.kind !== 'zero') {
      at += mapping.lengthBytes;
      continue;
    }
    if (!hasBacking) {
      await unallocateClusters(image, at, mapping.lengthBytes);
      at += mapping.lengthBytes;
      continue;
    }
    const reservation = await reserver.reserve(at, mapping.lengthBytes);
    try {
      const zeroes = Buffer.alloc(reservation.lengthBytes);
      await writeData(context, reservation.child, reservation.hostOffset, reservation.offset, zeroes);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    at = reservation.offset + reservation.lengthBytes;
  }
}

/** Clusters that are looked at and written at a time. */
const PIECE_CLUSTERS = 16;
