import { Permission, unitePermissions } from '../../block/permissions.js';
import type { PermissionSet } from '../../block/driver.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** Also while nobody writes, it does. */
export function copyOnReadPermissions(users: PermissionSet): PermissionSet {
  return {
    perm: unitePermissions(users.perm, Permission.writeUnchanged),
    shared: unitePermissions(users.shared, Permission.writeUnchanged),
  };
}

/** The filter that marks a node as being streamed into. It does not copy what the guest reads: the job does. */
export const COPY_ON_READ = jobFilter('copy-on-read', copyOnReadPermissions, { isNamedWhole: true });
