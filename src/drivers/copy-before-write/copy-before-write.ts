import type { DriverDescription } from '../../block/driver.js';
import { Permission, withoutPermissions } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/**
 * The filter of a backup: before the guest overwrites something, its old content goes to the target. So nobody may
 * write past it.
 */
export const COPY_BEFORE_WRITE: DriverDescription = {
  ...jobFilter('copy-before-write', (users) => ({
    perm: users.perm,
    shared: withoutPermissions(users.shared, Permission.write + Permission.resize),
  })),
  isAlwaysShown: true,
};
