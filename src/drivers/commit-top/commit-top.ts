import { ALL_PERMISSIONS } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** The filter of a commit, between the overlay and `top`: below it the base may be written. */
export const COMMIT_TOP = jobFilter('commit_top', (users) => ({
  perm: users.perm,
  shared: ALL_PERMISSIONS,
}));
