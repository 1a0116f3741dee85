import { arrayOf, bool, enumOf, int, optional, required, size, str, struct, uint32 } from './types.js';

/** Points in time of disks: livedisk's own commands (extensions.ts). */

/** Default of quiesce-timeout: applications on a frozen file system wait as long. */
export const DEFAULT_QUIESCE_MS = 10_000;

/** A disk, and how its new active image is called; names are made up where none is given. */
const PointDisk = struct('XPointDisk', {
  /** Its active image, or the drive or device that uses it. */
  node: required(str),
  file: optional(str),
  'new-node-name': optional(str),
});

export const POINT_COMMANDS = {
  'x-point-create': struct('x-point-create-arg', {
    name: required(str),
    /** Default: all that are writable. */
    disks: optional(arrayOf(PointDisk)),
    /** The oldest points beyond so many are deleted. */
    keep: optional(uint32),
    /** Path of the guest agent's socket: file systems are frozen at the point's moment. */
    quiesce: optional(str),
    /** In milliseconds, of both freezing and staying frozen. */
    'quiesce-timeout': optional(uint32),
    'dry-run': optional(bool),
  }),
  'x-point-list': struct('x-point-list-arg', { nodes: optional(arrayOf(str)) }),
  'x-point-delete': struct('x-point-delete-arg', {
    name: required(str),
    /** Of these disks alone. */
    nodes: optional(arrayOf(str)),
    'dry-run': optional(bool),
  }),
  'x-point-revert': struct('x-point-revert-arg', {
    /** The point; or the image that is gone back to, which needs none. */
    name: optional(str),
    /** Below the active one. */
    image: optional(str),
    disks: optional(arrayOf(PointDisk)),
    'dry-run': optional(bool),
  }),
} as const;

/** What a command does, told before it does it. */
const PointPlan = struct('XPointPlan', {
  words: required(arrayOf(str)),
  /** Copied at most. */
  bytes: required(size),
  /** The same as time, at 200 MiB a second. */
  seconds: required(size),
  /** Files that the disks do without afterwards. */
  ends: required(arrayOf(str)),
  /** Images that show something else afterwards, and why. */
  invalid: required(arrayOf(str)),
  /** Who uses what changes, besides the disks' users. */
  users: required(arrayOf(str)),
});

const NewImage = struct('XPointImage', {
  disk: required(str),
  /** The one that was active. */
  node: required(str),
  'new-node-name': required(str),
  file: required(str),
});

export const POINT_STATES = ['usable', 'deleting', 'lost'] as const;

const PointInfo = struct('XPointInfo', {
  name: required(str),
  id: required(str),
  /** Seconds since 1970. */
  created: required(int),
  state: required(enumOf('XPointState', POINT_STATES)),
  /** The image that holds it, by its node's name and its file. */
  node: optional(str),
  file: optional(str),
  /** What that image takes. */
  bytes: optional(size),
  /** Of how many disks it is. */
  disks: required(int),
  /** Why it is lost, or could not be deleted. */
  why: optional(str),
});

const PointDiskInfo = struct('XPointDiskInfo', {
  disk: required(str),
  node: required(str),
  file: required(str),
  /** Where its points are kept. */
  'points-file': optional(str),
  /** The disk's active image, which is not what is open: writing to this one would destroy a point. */
  'active-elsewhere': optional(str),
  /** Oldest first. */
  points: required(arrayOf(PointInfo)),
});

export const POINT_RETURNS = {
  'x-point-create': struct('XPointCreated', {
    id: required(str),
    plan: required(PointPlan),
    images: required(arrayOf(NewImage)),
    /** The guest's file systems were frozen at that moment. */
    quiesced: required(bool),
    /** Names of points that are deleted for it. */
    deletes: required(arrayOf(str)),
  }),
  'x-point-list': struct('XPoints', {
    disks: required(arrayOf(PointDiskInfo)),
    /** Names of points whose deletion waits or runs, in order. */
    queue: required(arrayOf(str)),
  }),
  'x-point-delete': struct('XPointDeletion', {
    id: required(str),
    state: required(enumOf('XPointDeletionState', ['planned', 'queued', 'running', 'done'])),
    plan: required(PointPlan),
  }),
  'x-point-revert': struct('XPointReverted', {
    id: required(str),
    plan: required(PointPlan),
    images: required(arrayOf(NewImage)),
  }),
} as const;

/** A deletion has ended, well or with an error. */
export const POINT_EVENTS = {
  'x-point-deleted': struct('x-point-deleted-arg', {
    name: required(str),
    id: required(str),
    error: optional(str),
  }),
} as const;
