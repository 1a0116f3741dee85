import type { PermissionSet } from './driver.js';
import type { Node } from './node.js';
import {
  ALL_PERMISSIONS,
  hasPermission,
  Permission,
  unitePermissions,
  withoutPermissions,
} from './permissions.js';

const WRITING = Permission.write | Permission.resize;

/** What a node asks of a child, given what its own users ask of it. */
export function childPermissions(node: Node, role: string, set: PermissionSet): PermissionSet {
  // Another process owns the image until this node is activated.
  if (node.activity === 'inactive' && role !== 'backing')
    return { perm: Permission.consistentRead, shared: ALL_PERMISSIONS };
  const hasUsers = node.parents.size > 0;
  const own = node.driver.childPermissions?.(role, set, node.readOnly, node.settings, hasUsers);
  if (own) return own;
  if (role === 'backing') return backingPermissions(node, set);
  return node.driver.kind === 'filter' ? set : storagePermissions(node, set);
}

/**
 * A format's own file: it keeps metadata there, so it writes and resizes whenever it is writable, alone. What its
 * users keep from others goes for the file too.
 */
function storagePermissions(node: Node, { perm, shared }: PermissionSet): PermissionSet {
  const own = (node.onlyLook ? 0 : Permission.consistentRead) + (node.readOnly ? 0 : WRITING);
  return { perm: unitePermissions(perm, own), shared: withoutPermissions(shared, WRITING) };
}

/** A backing file: read only, and it must not change unless the overlay's users accept writers themselves. */
function backingPermissions(node: Node, set: PermissionSet): PermissionSet {
  const perm = hasPermission(set.perm, Permission.consistentRead) ? Permission.consistentRead : 0;
  const letsWrite = node.activity === 'inactive' || hasPermission(set.shared, Permission.write);
  return { perm, shared: letsWrite ? ALL_PERMISSIONS : withoutPermissions(ALL_PERMISSIONS, WRITING) };
}
