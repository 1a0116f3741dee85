import type { DriverDescription } from '../../block/driver.js';
import { hasPermission, Permission, unitePermissions, withoutPermissions } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/**
 * The filter of a backup: before the guest overwrites something, its old content goes to the target. So nobody may
 * write past it.
 */
export const COPY_BEFORE_WRITE: DriverDescription = {
  ...jobFilter('copy-before-write', (users, hasUsers) => ({
    perm: unitePermissions(
      users.perm,
      hasPermission(users.perm, Permission.write) ? Permission.consistentRead : 0,
    ),
    shared: hasUsers ? withoutPermissions(users.shared, Permission.write | Permission.resize) : users.shared,
  })),
  isAlwaysShown: true,
};
