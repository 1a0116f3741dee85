import { type BitmapsExtension, encodeBitmapsExtension } from '../disk/bitmap-directory.js';
import { encodeDurable, type NamedDurability } from '../disk/durable-bitmaps.js';
import type { Header } from '../disk/header.js';
import { ExtensionType, findExtension, type HeaderExtension } from '../disk/header-extensions.js';
import { AUTOCLEAR_BITMAPS, AUTOCLEAR_DURABLE_BITMAPS, AUTOCLEAR_RAW_DATA } from '../disk/layout.js';

/** Features that livedisk keeps true. */
export const KNOWN_AUTOCLEAR = AUTOCLEAR_BITMAPS + AUTOCLEAR_RAW_DATA + AUTOCLEAR_DURABLE_BITMAPS;

/** What a header says of bitmaps, beside what it has of others. */
export interface BitmapsHeader {
  extensions: HeaderExtension[];
  autoclear: bigint;
}

/** The same header with that directory, and those durable bitmaps in it; features that we do not know are gone. */
export function headerWith(
  { extensions: others, autoclear: before }: Header,
  directory: BitmapsExtension | undefined,
  durable: readonly NamedDurability[],
): BitmapsHeader {
  const extensions = others.filter(
    ({ type }) => type !== ExtensionType.bitmaps && type !== ExtensionType.durableBitmaps,
  );
  if (directory) extensions.push({ type: ExtensionType.bitmaps, data: encodeBitmapsExtension(directory) });
  const listed = encodeDurable(durable);
  if (listed) extensions.push(listed);
  // What holds of a data file holds on.
  let autoclear = before & AUTOCLEAR_RAW_DATA;
  if (directory) autoclear += AUTOCLEAR_BITMAPS;
  if (durable.some(({ lost }) => lost === undefined)) autoclear += AUTOCLEAR_DURABLE_BITMAPS;
  return { extensions, autoclear };
}

const NOTHING = Buffer.alloc(0);

/** Wherever the directory is: that is what the image was opened by. */
export function saysTheSame(header: BitmapsHeader, wanted: BitmapsHeader): boolean {
  const hasDirectory = ({ extensions }: BitmapsHeader): boolean =>
    findExtension(extensions, ExtensionType.bitmaps) !== undefined;
  const durable = ({ extensions }: BitmapsHeader): Buffer =>
    findExtension(extensions, ExtensionType.durableBitmaps) ?? NOTHING;
  return (
    hasDirectory(header) === hasDirectory(wanted) &&
    header.autoclear === wanted.autoclear &&
    durable(header).equals(durable(wanted))
  );
}
