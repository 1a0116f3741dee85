/** What a user of a node wants to do with it, or lets others do (QEMU: BlockPermission). Or-ed together. */
export const Permission = {
  consistentRead: 1,
  write: 2,
  writeUnchanged: 4,
  resize: 8,
} as const;

export const ALL_PERMISSIONS = 15;

const NAMES: ReadonlyArray<readonly [number, string]> = [
  [Permission.consistentRead, 'consistent read'],
  [Permission.write, 'write'],
  [Permission.writeUnchanged, 'write unchanged'],
  [Permission.resize, 'resize'],
];

export function hasPermission(set: number, permission: number): boolean {
  return (set & permission) !== 0;
}

/** Bits in both sets. */
export function commonPermissions(a: number, b: number): number {
  return a & b;
}

/** Bits in either set. */
export function unitePermissions(a: number, b: number): number {
  return a | b;
}

/** Bits of `a` that are not in `b`. */
export function withoutPermissions(a: number, b: number): number {
  return a & ~b;
}

/** "write, resize", as QEMU's conflict messages word it. */
export function permissionNames(set: number): string {
  return NAMES.filter(([bit]) => hasPermission(set, bit))
    .map(([, name]) => name)
    .join(', ');
}

/** For query: "consistent-read", "write-unchanged" ... */
export function permissionList(set: number): string[] {
  return NAMES.filter(([bit]) => hasPermission(set, bit)).map(([, name]) => name.replace(' ', '-'));
}
