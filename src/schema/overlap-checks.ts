import { alternate, bool, enumOf, optional, struct } from './types.js';

/** Structures of an image that no write may hit. */
export const OVERLAP_STRUCTURES = [
  'main-header',
  'active-l1',
  'active-l2',
  'refcount-table',
  'refcount-block',
  'snapshot-table',
  'inactive-l1',
  'inactive-l2',
  'bitmap-directory',
] as const;
export type OverlapStructure = (typeof OVERLAP_STRUCTURES)[number];
export const OVERLAP_TEMPLATES = ['none', 'constant', 'cached', 'all'] as const;
export type OverlapTemplate = (typeof OVERLAP_TEMPLATES)[number];

const OVERLAP_TEMPLATE = enumOf('Qcow2OverlapCheckMode', OVERLAP_TEMPLATES);
const OVERLAP_FLAGS = struct('Qcow2OverlapCheckFlags', {
  template: optional(OVERLAP_TEMPLATE),
  'main-header': optional(bool),
  'active-l1': optional(bool),
  'active-l2': optional(bool),
  'refcount-table': optional(bool),
  'refcount-block': optional(bool),
  'snapshot-table': optional(bool),
  'inactive-l1': optional(bool),
  'inactive-l2': optional(bool),
  'bitmap-directory': optional(bool),
});
export const OVERLAP_CHECKS = alternate('Qcow2OverlapChecks', [OVERLAP_FLAGS, OVERLAP_TEMPLATE]);
