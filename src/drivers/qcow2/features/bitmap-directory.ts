import { errnoError } from '../../../base/error.js';
import type { ChildIo } from '../../../block/driver.js';
import {
  type BitmapEntry,
  type BitmapsExtension,
  decodeBitmapsExtension,
  decodeDirectory,
} from '../disk/bitmap-directory.js';
import { ExtensionType, findExtension } from '../disk/header-extensions.js';
import type { Header } from '../disk/header.js';
import { AUTOCLEAR_BITMAPS } from '../disk/layout.js';

/** What an image says of the bitmaps that it keeps. */
export interface LoadedDirectory {
  entries: BitmapEntry[];
  /** Where they are; undefined: the image keeps none. */
  extension: BitmapsExtension | undefined;
}

export const NO_BITMAPS: LoadedDirectory = { entries: [], extension: undefined };

/** What the header says of bitmaps that cannot be relied on: somebody who does not know them has changed the image. */
export function hasOutdatedBitmaps({ extensions, autoclear }: Header): boolean {
  return (
    findExtension(extensions, ExtensionType.bitmaps) !== undefined && (autoclear & AUTOCLEAR_BITMAPS) === 0n
  );
}

/** Reads the bitmap directory (qcow2 specification, "Bitmap directory"). Errors: kind corrupt, in QEMU's words. */
export async function readBitmapDirectory(file: ChildIo, header: Header): Promise<LoadedDirectory> {
  const data = findExtension(header.extensions, ExtensionType.bitmaps);
  if (!data || (header.autoclear & AUTOCLEAR_BITMAPS) === 0n) return NO_BITMAPS;
  const extension = decodeBitmapsExtension(data, header.clusterBytes);
  const directory = Buffer.alloc(extension.directoryBytes);
  if (extension.directoryOffset < 0) throw errnoError('EIO', 'Failed to read bitmap directory');
  if (extension.directoryOffset < file.lengthBytes) await file.read(extension.directoryOffset, directory);
  return { entries: decodeDirectory(directory, extension.count, header), extension };
}
