import { DirtyBitmap } from '../../block/dirty-bitmap.js';

/** What a copy-before-write keeps in mind of a disk, cluster by cluster. */
export class CopyBitmaps {
  /** Not in the target yet. */
  readonly due: DirtyBitmap;
  /** Of what the point in time is kept. */
  readonly access: DirtyBitmap;
  /** What has been written through the filter: as one of its bitmaps it hears of that. */
  readonly written: DirtyBitmap;

  /** Their bits; see `from`. */
  get parts(): Uint8Array[] {
    return [this.due, this.access, this.written].map((bitmap) => bitmap.bytes());
  }

  /** Those of another process. */
  static from(sizeBytes: number, clusterBytes: number, parts: readonly Uint8Array[]): CopyBitmaps {
    const bitmaps = new CopyBitmaps(sizeBytes, clusterBytes);
    const { due, access, written } = bitmaps;
    [due, access, written].forEach((bitmap, index) => {
      bitmap.deserialise(0, parts[index] ?? new Uint8Array(0));
    });
    return bitmaps;
  }

  /** Errors: kind limit. */
  constructor(sizeBytes: number, clusterBytes: number) {
    this.due = new DirtyBitmap(sizeBytes, clusterBytes);
    this.access = new DirtyBitmap(sizeBytes, clusterBytes);
    this.written = new DirtyBitmap(sizeBytes, clusterBytes);
    for (const bitmap of [this.due, this.access, this.written]) bitmap.isInternal = true;
    this.due.enabled = false;
    this.access.enabled = false;
  }
}
