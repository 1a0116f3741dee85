import { BlockdevAmendOptions } from './amend-options.js';
import { alternate, arrayOf, bool, int, nullType, optional, required, str, struct, uint64 } from './types.js';

/** Commands of the block layer that few use. */

const BOUNDARIES = optional(arrayOf(uint64));

export const RARE_COMMANDS = {
  'block-latency-histogram-set': struct('block-latency-histogram-set-arg', {
    id: required(str),
    boundaries: BOUNDARIES,
    'boundaries-read': BOUNDARIES,
    'boundaries-write': BOUNDARIES,
    'boundaries-flush': BOUNDARIES,
  }),
  'blockdev-snapshot-delete-internal-sync': struct('blockdev-snapshot-delete-internal-sync-arg', {
    device: required(str),
    id: optional(str),
    name: optional(str),
  }),
  'blockdev-snapshot-internal-sync': struct('BlockdevSnapshotInternal', {
    device: required(str),
    name: required(str),
  }),
  'snapshot-delete': struct('snapshot-delete-arg', {
    'job-id': required(str),
    tag: required(str),
    devices: required(arrayOf(str)),
  }),
  'snapshot-load': struct('snapshot-load-arg', {
    'job-id': required(str),
    tag: required(str),
    vmstate: required(str),
    devices: required(arrayOf(str)),
  }),
  'snapshot-save': struct('snapshot-save-arg', {
    'job-id': required(str),
    tag: required(str),
    vmstate: required(str),
    devices: required(arrayOf(str)),
  }),
  'x-blockdev-amend': struct('x-blockdev-amend-arg', {
    'job-id': required(str),
    'node-name': required(str),
    options: required(BlockdevAmendOptions),
    force: optional(bool),
  }),
  'x-blockdev-change': struct('x-blockdev-change-arg', {
    parent: required(str),
    child: optional(str),
    node: optional(str),
  }),
  'x-blockdev-set-iothread': struct('x-blockdev-set-iothread-arg', {
    'node-name': required(str),
    iothread: required(alternate('StrOrNull', [str, nullType])),
    force: optional(bool),
  }),
} as const;

/** An internal snapshot. */
export const SnapshotInfo = struct('SnapshotInfo', {
  id: required(str),
  name: required(str),
  'vm-state-size': required(int),
  'date-sec': required(int),
  'date-nsec': required(int),
  'vm-clock-sec': required(int),
  'vm-clock-nsec': required(int),
  icount: optional(int),
});

export const RARE_RETURNS = {
  'blockdev-snapshot-delete-internal-sync': SnapshotInfo,
} as const;
