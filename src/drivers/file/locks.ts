import { BlockError } from '../../base/error.js';
import type { PermissionSet } from '../../block/driver.js';
import { ALL_PERMISSIONS, hasPermission, Permission } from '../../block/permissions.js';
import type { HostFile } from '../../host/host.js';

/**
 * QEMU's image locking, so that its programs and ours keep out of each other's way: a shared OFD lock on byte
 * 100 + bit says that we hold a permission, on 200 + bit that we do not share it. Seen in /proc/locks while QEMU's
 * programs have an image open; bits as in block/permissions.
 */
const HELD_BASE = 100;
const UNSHARED_BASE = 200;

const PERMISSION_BITS: ReadonlyArray<{ bit: number; value: number; name: string }> = [
  { bit: 0, value: 1, name: 'consistent read' },
  { bit: 1, value: 2, name: 'write' },
  { bit: 2, value: 4, name: 'write unchanged' },
  { bit: 3, value: 8, name: 'resize' },
];

/** What making an image in a file or on a device needs, and keeps others from. */
export const CREATOR: PermissionSet = {
  perm: Permission.write | Permission.resize,
  shared: ALL_PERMISSIONS - Permission.resize,
};

/** The lock bytes that say these permissions. */
export function lockBytes({ perm, shared }: PermissionSet): Set<number> {
  const bytes = new Set<number>();
  for (const { bit, value } of PERMISSION_BITS) {
    if (hasPermission(perm, value)) bytes.add(HELD_BASE + bit);
    if (!hasPermission(shared, value)) bytes.add(UNSHARED_BASE + bit);
  }
  return bytes;
}

/**
 * Takes the locks that `wanted` needs beyond `held`, then looks whether anyone else's contradict them: two that come
 * at once may both be refused, but never both be let in. On a conflict gives the new ones back and throws kind
 * 'busy'. Answers what is locked afterwards: `held` and the new ones.
 */
export function acquireLocks(file: HostFile, held: ReadonlySet<number>, wanted: PermissionSet): Set<number> {
  const taken: number[] = [];
  try {
    for (const byte of lockBytes(wanted)) {
      if (held.has(byte)) continue;
      if (!file.lockByteShared(byte)) throw conflict(file, byte);
      taken.push(byte);
    }
    checkOthers(file, wanted);
  } catch (error) {
    releaseLocks(file, taken);
    throw error;
  }
  return new Set([...held, ...taken]);
}

export function releaseLocks(file: HostFile, bytes: Iterable<number>): void {
  for (const byte of bytes) file.unlockByte(byte);
}

/** Somebody unshares what we want, or holds what we do not share; in this order, which decides the message. */
function checkOthers(file: HostFile, { perm, shared }: PermissionSet): void {
  for (const { bit, value } of PERMISSION_BITS) {
    if (hasPermission(perm, value) && file.isByteLockedByOther(UNSHARED_BASE + bit)) {
      throw conflict(file, HELD_BASE + bit);
    }
  }
  for (const { bit, value } of PERMISSION_BITS) {
    if (!hasPermission(shared, value) && file.isByteLockedByOther(HELD_BASE + bit)) {
      throw conflict(file, UNSHARED_BASE + bit);
    }
  }
}

function conflict(file: HostFile, byte: number): BlockError {
  const unshared = byte >= UNSHARED_BASE;
  const name = PERMISSION_BITS[byte - (unshared ? UNSHARED_BASE : HELD_BASE)]?.name ?? 'unknown';
  return new BlockError('busy', `Failed to get ${unshared ? 'shared ' : ''}"${name}" lock`, {
    path: file.path,
    errno: 'EAGAIN',
    hint: `Is another process using the image [${file.path}]?`,
  });
}
