import { arrayOf, bool, extension, int, optional, required, size, str, struct } from './types.js';

/** What a command would do, told in the place of doing it (docs/DRY-RUN.md): livedisk's own (extensions.ts). */
export const DRY_RUN_ARGUMENT = { 'x-dry-run': extension(optional(bool)) } as const;

/** The file system that a target grows on. */
const Space = struct('XDryRunSpace', {
  path: required(str),
  /** What the copy takes there that its image does not have yet. */
  needed: required(size),
  free: required(size),
});

/** How fast a target over a network answered. */
const Link = struct('XDryRunLink', {
  node: required(str),
  /** Of the fastest of some small reads, in microseconds. */
  'round-trip': required(int),
  /** Missing where the target has no data to be read. */
  rate: optional(size),
});

export const DryRun = struct('XDryRun', {
  words: required(arrayOf(str)),
  /** What is in the way: empty where the command would be taken. */
  refused: required(arrayOf(str)),
  /** Data to be copied, as things are now. */
  bytes: required(size),
  /** What is known to be zeroes: nothing of it is copied. */
  zero: required(size),
  /** In what units. */
  unit: optional(size),
  seconds: optional(size),
  /** Nodes that the disk does without afterwards, top first. */
  ends: required(arrayOf(str)),
  /** Images that show something else afterwards, and why. */
  invalid: required(arrayOf(str)),
  space: optional(Space),
  link: optional(Link),
});

const Started = struct('XStarted', { 'x-dry-run': extension(optional(DryRun)) });

export const DRY_RUN_RETURNS = {
  'block-commit': Started,
  'block-stream': Started,
  'blockdev-backup': Started,
  'blockdev-mirror': Started,
  'blockdev-snapshot': Started,
  'blockdev-snapshot-sync': Started,
  'drive-backup': Started,
  'drive-mirror': Started,
} as const;
