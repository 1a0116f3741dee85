import { BlockError } from '../../../base/error.js';
import type { ImageAmendment } from '../../../block/driver.js';
import { newMapping } from '../../../block/request.js';
import { COMPATIBLE_LAZY_REFCOUNTS } from '../disk/layout.js';
import { unallocateClusters } from '../mapping/zeroing.js';
import { writeData } from '../mapping/guest-data.js';
import type { OpenImage } from '../open-image.js';
import { changeHeader } from './header-change.js';

/** Bits of a refcount in version 2: 2^4. */
const V2_REFCOUNT_ORDER = 4;

/**
 * Changes an image to what is asked for, in one step of its header, after what that needs; durable on return.
 * Errors: unsupported, invalid, in QEMU's words; those of writing. The image is sound after each of them.
 */
export async function amendImage(
  image: OpenImage,
  { version, lazyRefcounts }: Omit<ImageAmendment, 'keySlots'>,
): Promise<void> {
  const { context } = image;
  const { header } = context;
  context.assertMayWrite();
  const newVersion = version ?? header.version;
  if (lazyRefcounts === true && newVersion < 3)
    throw new BlockError(
      'invalid',
      'Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)',
      { errno: 'EINVAL' },
    );
  await context.beginChanges();
  if (newVersion < header.version) await prepareDowngrade(image);
  const isLazy = lazyRefcounts ?? (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n;
  const others = newVersion < 3 ? 0n : header.compatible & ~COMPATIBLE_LAZY_REFCOUNTS;
  const compatible = others + (isLazy && newVersion >= 3 ? COMPATIBLE_LAZY_REFCOUNTS : 0n);
  if (newVersion === header.version && compatible === header.compatible) return;
  await changeHeader(context, { version: newVersion, compatible });
}

/** Version 2 has no zero clusters: they become data. Errors: unsupported. */
async function prepareDowngrade(image: OpenImage): Promise<void> {
  const { header } = image.context;
  const refuse = (why: string): never => {
    throw new BlockError('unsupported', why, { errno: 'ENOTSUP' });
  };
  if (header.refcountOrder !== V2_REFCOUNT_ORDER) refuse('compat=0.10 requires refcount_bits=16');
  if (image.context.l2.hasDataFile) refuse('Cannot downgrade an image with a data file');
  if (header.snapshotCount > 0) refuse('Internal snapshots prevent downgrade of image');
  if (header.incompatible !== 0n)
    refuse(`Cannot downgrade an image with incompatible features 0x${header.incompatible.toString(16)} set`);
  if (image.bitmaps.infos !== undefined) refuse('Cannot downgrade an image that keeps bitmaps');
  await writeOutZeroes(image);
  do await image.writeBack.flush();
  while (image.writeBack.isDirty);
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
