import type { FilledOf, Members } from '../../schema/types.js';
import type { DirtyBitmap } from '../dirty-bitmap.js';
import type { ChildIo } from './child-io.js';
import type { DriverInfo } from './image.js';
import type { NodeOptions } from './options.js';

/** What is asked for by `img create`, blockdev-create and snapshot creation. */
export interface CreateOptions {
  sizeBytes: number;
  backingFile?: string;
  backingFormat?: string;
  /** The format's own, by QMP name: cluster-size, version, ... */
  options?: NodeOptions;
  readonly file?: NewFileTraits;
}

/** What a new file is to be like, where its file system can. */
export interface NewFileTraits {
  /** Overwritten in place (btrfs): images that are written to all the time stay in few pieces. */
  readonly noCopyOnWrite?: boolean;
}

/** What an image is to hold. */
export interface MeasuredContent {
  /** How much data it is, in whole units. */
  dataBytes(unitBytes: number): Promise<number>;
  /** The bitmaps that are kept with it; undefined: it comes from where none can be kept. */
  readonly bitmaps: readonly DirtyBitmap[] | undefined;
  /** Errors: not-found, invalid. */
  secret(id: string): Uint8Array;
}

/** How large a file would be. */
export interface Measurement {
  /** With the content as it is. */
  requiredBytes: number;
  /** When all of the disk has been written. */
  fullyAllocatedBytes: number;
  /** What bitmaps that are copied with the content take besides; absent: none can be. */
  bitmapsBytes?: number;
}

/** The same, checked, and with the format's defaults. */
export interface NewImage<C extends Members = Members> extends Omit<CreateOptions, 'options'> {
  options: FilledOf<C>;
  /** Of formats with such an option: the file for the guest's data, open and empty, and its name. */
  dataFile?: { io: ChildIo; filename: string };
  /** Of formats that may have their header apart: the file is for that alone, and the guest's data, if any, for dataFile. */
  isHeaderApart?: boolean;
}

/** What a new image may be made with besides its own file. */
export interface NewImageContext {
  /** The image's own, as it was named. */
  readonly filename: string;
  /** Makes one in the image's folder, and opens it until the image is made. */
  create(name: string): Promise<ChildIo>;
  /** What the driver says of an image that is to be the backing file. */
  lookAt(filename: string, format: string | undefined): Promise<DriverInfo>;
  /** Errors: not-found, invalid. */
  secret(id: string): Uint8Array;
}

/** What of new space is taken at once: the tables that map it, the blocks of the file too, or blocks with zeroes in them. */
export type Preallocated = 'metadata' | 'falloc' | 'full';
