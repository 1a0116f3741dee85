import { BlockError } from '../../base/error.js';
import type { DriverDescription, PermissionSet } from '../../block/driver.js';
import { driverOptions } from '../../schema/blockdev-options.js';

/** Describes a filter that only a job can put into the graph, with the permissions it asks of its child. */
export function jobFilter(
  name: string,
  childPermissions?: (users: PermissionSet, hasUsers: boolean) => PermissionSet,
  more: Pick<DriverDescription, 'isNamedWhole' | 'isNeverFrozen' | 'shownChildRole'> = {},
): DriverDescription {
  return {
    ...more,
    isNamedAsChild: true,
    readsAsChild: true,
    name,
    kind: 'filter',
    options: driverOptions({}, [{ role: 'file', required: true }]),
    open: () => Promise.reject(new BlockError('invalid', `Driver '${name}' can only be used by a block job`)),
    ...(childPermissions && {
      childPermissions: (_role, users, _readOnly, _options, hasUsers) => childPermissions(users, hasUsers),
    }),
  };
}
