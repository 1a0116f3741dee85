import type { DriverDescription, PermissionSet } from '../../block/driver.js';
import {
  ALL_PERMISSIONS,
  hasPermission,
  Permission,
  unitePermissions,
  withoutPermissions,
} from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/**
 * The filter of a backup: before the guest overwrites something, its old content goes to the target. So nobody may
 * write past it.
 */
export const COPY_BEFORE_WRITE: DriverDescription = {
  ...jobFilter('copy-before-write', sourcePermissions),
  isAlwaysShown: true,
};

/** The same of one that discards in the source what it has copied. */
export const COPY_BEFORE_WRITE_DISCARDING: DriverDescription = {
  ...jobFilter('copy-before-write', (users, hasUsers) => {
    const { perm, shared } = sourcePermissions(users, hasUsers);
    return { perm: unitePermissions(perm, Permission.write), shared };
  }),
  isAlwaysShown: true,
};

function sourcePermissions(users: PermissionSet, hasUsers: boolean): PermissionSet {
  const reads = hasPermission(users.perm, Permission.write) ? Permission.consistentRead : 0;
  return {
    perm: unitePermissions(users.perm, reads),
    shared: hasUsers ? withoutPermissions(users.shared, Permission.write | Permission.resize) : users.shared,
  };
}

/** The same of one that users put in. Others may write the target: the disk itself may be in its backing chain. */
export function copyBeforeWritePermissions(
  role: string,
  users: PermissionSet,
  _readOnly: boolean,
  _settings: unknown,
  hasUsers: boolean,
): PermissionSet {
  if (role === 'file') return sourcePermissions(users, hasUsers);
  return { perm: Permission.write, shared: withoutPermissions(ALL_PERMISSIONS, Permission.resize) };
}
