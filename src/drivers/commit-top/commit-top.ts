import { ALL_PERMISSIONS } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** The filter of a commit, between the overlay and `top`: below it nothing is consistent but the base. */
export const COMMIT_TOP = jobFilter('commit_top', () => ({ perm: 0, shared: ALL_PERMISSIONS }), {
  shownChildRole: 'backing',
  isNeverFrozen: true,
});
