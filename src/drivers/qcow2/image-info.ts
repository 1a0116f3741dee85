import { alignUp } from '../../base/align.js';
import { given } from '../../base/given.js';
import type { DriverInfo, Json } from '../../block/driver.js';
import { dataFileOf, type Header } from './disk/header.js';
import { COMPATIBLE_LAZY_REFCOUNTS, ENTRY_BYTES } from './disk/layout.js';
import { snapshotInfo } from './disk/snapshots.js';
import type { OpenImage } from './open-image.js';

/** What queries and `img info` tell of an image, QAPI's ImageInfoSpecificQCow2 included. */
export function imageInfo({ context, snapshots, bitmaps }: OpenImage): DriverInfo {
  const { header, encryption } = context;
  const encrypt = encryption?.info();
  const data: { [key: string]: Json } =
    header.version === 2
      ? { compat: '0.10', 'compression-type': 'zlib', 'refcount-bits': 16, ...given({ encrypt }) }
      : {
          compat: '1.1',
          'compression-type': header.compressionType === 1 ? 'zstd' : 'zlib',
          'lazy-refcounts': (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
          ...given({ bitmaps: bitmaps.infos }),
          'refcount-bits': 2 ** header.refcountOrder,
          ...given({ encrypt }),
          ...dataFileInfo(header),
          corrupt: context.isMarkedCorrupt,
          'extended-l2': context.l2.unitsPerCluster > 1,
        };
  return {
    clusterSizeBytes: header.clusterBytes,
    vmStateOffset: alignUp(header.sizeBytes, (header.clusterBytes * header.clusterBytes) / ENTRY_BYTES),
    isDirty: context.isDirty,
    isCorrupt: context.isMarkedCorrupt,
    isEncrypted: encryption !== undefined,
    snapshots: snapshots.entries.map(snapshotInfo),
    formatSpecific: { type: 'qcow2', data },
  };
}

function dataFileInfo(header: Header): { [key: string]: Json } {
  const dataFile = dataFileOf(header);
  if (!dataFile) return {};
  const { name, isRaw } = dataFile;
  return { ...(name !== undefined && { 'data-file': name }), 'data-file-raw': isRaw };
}
