import { BlockError, errnoError } from '../../base/error.js';
import type { ChildIo, NewImage, NewImageContext } from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import type { VMDK_TOOL_CREATE } from '../../schema/create-options.js';
import { encodeDescriptor, NO_CID } from './descriptor.js';
import { encodeSparse, SECTOR_BYTES } from './sparse-header.js';

export type NewVmdk = NewImage<typeof VMDK_TOOL_CREATE>;

/** A split disk's extents have at most so much. */
const SPLIT_BYTES = 2 ** 31;

interface Shape {
  readonly isFlat: boolean;
  readonly isSplit: boolean;
  readonly isCompressed: boolean;
}

function shapeOf({ options }: NewVmdk): Shape {
  const { subformat } = options;
  return {
    isFlat: subformat === 'monolithicFlat' || subformat === 'twoGbMaxExtentFlat',
    isSplit: subformat === 'twoGbMaxExtentSparse' || subformat === 'twoGbMaxExtentFlat',
    isCompressed: subformat === 'streamOptimized',
  };
}

/** Errors: invalid, in QEMU's words. */
export function checkNewVmdk(image: NewVmdk): void {
  const { options, backingFile, backingFormat } = image;
  const { isFlat } = shapeOf(image);
  if (options.compat6 && options.hwversion !== undefined)
    throw invalid('compat6 cannot be enabled with hwversion set');
  if (backingFile !== undefined && isFlat) throw invalid("Flat image can't have backing file");
  if (options['zeroed-grain'] && isFlat) throw invalid("Flat image can't enable zeroed grain");
  if (backingFile !== undefined && backingFormat !== undefined && backingFormat !== 'vmdk')
    throw invalid('backing_file must be a vmdk image');
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

/** Its own file is the only extent, or the descriptor of others; that file comes last. */
export async function createVmdk(
  file: ChildIo,
  image: NewVmdk,
  host: Host,
  files: NewImageContext | undefined,
): Promise<void> {
  checkNewVmdk(image);
  const { sizeBytes, backingFile, options } = image;
  const { isFlat, isSplit, isCompressed } = shapeOf(image);
  if (!files) throw new BlockError('unsupported', 'Driver does not support blockdev-create');
  const isAlone = !isFlat && !isSplit;
  const sparse = { hasZeroGrains: options['zeroed-grain'], isCompressed };
  const extents: string[] = [];
  if (isAlone) {
    extents.push(`RW ${sizeBytes / SECTOR_BYTES} SPARSE "${quotable(baseName(files.filename))}"\n`);
  } else {
    const pieceBytes = isSplit ? SPLIT_BYTES : Infinity;
    for (let done = 0, index = 1; done < sizeBytes; done += pieceBytes, index++) {
      const piece = Math.min(pieceBytes, sizeBytes - done);
      const name = extentName(baseName(files.filename), isFlat, isSplit ? index : undefined);
      const sectors = piece / SECTOR_BYTES;
      extents.push(
        isFlat ? `RW ${sectors} FLAT "${quotable(name)}" 0` : `RW ${sectors} SPARSE "${quotable(name)}"`,
      );
      const extent = await files.create(name);
      if (isFlat) await extent.truncate(piece);
      else await writeSparse(extent, { sizeBytes: piece, ...sparse }, undefined);
      await extent.flush();
    }
  }
  const descriptor = encodeDescriptor({
    cid: 1 + host.random.below(NO_CID - 1),
    parentCid: await parentCidOf(image, files),
    createType: options.subformat,
    parentName: backingFile,
    extents: extents.map((line) => line.trimEnd()),
    sizeBytes,
    adapterType: options['adapter-type'],
    hardwareVersion: options.compat6 ? '6' : (options.hwversion ?? '4'),
    toolsVersion: options.toolsversion ?? '2147483647',
  });
  if (isAlone) return writeSparse(file, { sizeBytes, ...sparse }, descriptor);
  await file.write(0, descriptor, 0);
  await file.flush();
}

function baseName(filename: string): string {
  return filename.slice(filename.lastIndexOf('/') + 1).replace(/^file:/, '');
}

/** A descriptor has no way to say it. */
function quotable(name: string): string {
  if (/["\n\0]/.test(name)) throw invalid(`A VMDK descriptor cannot name the file '${name}'`);
  return name;
}

function extentName(base: string, isFlat: boolean, index: number | undefined): string {
  const dot = base.lastIndexOf('.');
  const [prefix, suffix] = dot < 0 ? [base, ''] : [base.slice(0, dot), base.slice(dot)];
  if (index === undefined) return `${prefix}-flat${suffix}`;
  return `${prefix}-${isFlat ? 'f' : 's'}${String(index).padStart(3, '0')}${suffix}`;
}

async function parentCidOf({ backingFile, backingFormat }: NewVmdk, files: NewImageContext): Promise<number> {
  if (backingFile === undefined) return NO_CID;
  quotable(backingFile);
  const { formatSpecific } = await files.lookAt(backingFile, backingFormat);
  const { cid } = (formatSpecific?.['type'] === 'vmdk' ? formatSpecific['data'] : {}) as { cid?: number };
  if (cid === undefined) throw invalid('Invalid backing file format: Must be vmdk');
  return cid;
}

/** An empty extent; durable on return. Until the last step the file is none. */
async function writeSparse(
  file: ChildIo,
  extent: { sizeBytes: number; hasZeroGrains: boolean; isCompressed: boolean },
  descriptor: Buffer | undefined,
): Promise<void> {
  const { header, directories, descriptorOffset, descriptorBytes, grainOffset } = encodeSparse(extent);
  if (descriptor && descriptor.length > descriptorBytes) throw errnoError('ENOSPC');
  await file.extend(grainOffset);
  await file.writeZeroes(0, grainOffset, 0);
  for (const { offset, bytes } of directories) await file.write(offset, bytes, 0);
  if (descriptor) await file.write(descriptorOffset, descriptor, 0);
  await file.flush();
  await file.write(0, header, 0);
  await file.flush();
}
