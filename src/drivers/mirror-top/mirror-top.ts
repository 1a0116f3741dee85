import { Permission, unitePermissions, withoutPermissions } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** The filter of a mirror: the guest's changes pass it on their way to the source. */
export const MIRROR_TOP = jobFilter('mirror_top', undefined, { shownChildRole: 'backing' });

/**
 * The same for an active commit. Its target is the guest's own base: the layers above that are not consistent while
 * it is written, and users of the filter must not keep it from being written.
 */
export const MIRROR_TOP_ABOVE_BASE = jobFilter(
  'mirror_top',
  (users) => ({
    perm: withoutPermissions(users.perm, Permission.consistentRead),
    shared: unitePermissions(users.shared, Permission.write),
  }),
  { shownChildRole: 'backing' },
);
