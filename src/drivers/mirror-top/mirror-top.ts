import { ALL_PERMISSIONS } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** The filter of a mirror: the guest's changes pass it on their way to the source. */
export const MIRROR_TOP = jobFilter('mirror_top');

/**
 * The same for an active commit. Its target is the guest's own base, so users above it must not keep the chain below
 * from being written.
 */
export const MIRROR_TOP_ABOVE_BASE = jobFilter('mirror_top', (users) => ({
  perm: users.perm,
  shared: ALL_PERMISSIONS,
}));
