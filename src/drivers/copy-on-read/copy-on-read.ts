import { Permission, unitePermissions } from '../../block/permissions.js';
import { jobFilter } from '../pass-through/job-filter.js';

/** The filter that marks a node as being streamed into. It does not copy what the guest reads: the job does. */
export const COPY_ON_READ = jobFilter(
  'copy-on-read',
  (users) => ({
    perm: unitePermissions(users.perm, Permission.writeUnchanged),
    shared: unitePermissions(users.shared, Permission.writeUnchanged),
  }),
  { isNamedWhole: true },
);
