import type { DriverDescription } from '../../block/driver.js';
import { hasPermission, Permission, withoutPermissions } from '../../block/permissions.js';
import { PREALLOCATE_OPTIONS } from '../../schema/blockdev-options.js';
import { PreallocateNode } from './node.js';

const GROWING = Permission.write | Permission.resize;

/** Makes a file that grows larger than it need be yet. */
export const preallocateDriver: DriverDescription<typeof PREALLOCATE_OPTIONS> = {
  name: 'preallocate',
  kind: 'filter',
  compresses: true,
  options: PREALLOCATE_OPTIONS,
  mutableOptions: ['prealloc-align', 'prealloc-size'],

  /** The file's name would open the file alone. */
  filename: () => undefined,

  open: async (context, settings) =>
    new PreallocateNode(() => context.child('file'), settings, context.memory),

  /** While its users may make the file longer, nobody else may: it must know where the file ends. */
  childPermissions(_role, { perm, shared }) {
    const mayGrow = hasPermission(perm, Permission.write) && hasPermission(perm, Permission.resize);
    return { perm, shared: mayGrow ? withoutPermissions(shared, GROWING) : shared };
  },
};
