/**
 * Users of the nodes of one graph: [A] <-- [B] <-- [C], and E, S (qcow2) and T (raw) beside it; their files are a, b,
 * c, e, s and t.
 */
export interface User {
  command: string;
  arguments: { [key: string]: unknown };
  /** What is left of it after it was accepted: nothing (the default), a job, an export; 'change': another graph. */
  leaves?: 'job' | 'created' | 'export' | 'change';
}

export const NODES = ['A', 'B', 'C', 'E', 'S', 'T'];
export const FILES = NODES.map((name) => name.toLowerCase());
export const DISK_BYTES = 8 * 1024 * 1024;

function exported(node: string, writable: boolean): User {
  const options = { id: 'x', name: 'x', 'node-name': node, writable };
  return { command: 'block-export-add', arguments: { type: 'nbd', ...options }, leaves: 'export' };
}

const job = (command: string, args: object): User => ({
  command,
  arguments: { 'job-id': 'j', ...args },
  leaves: 'job',
});
const stream = (device: string, more = {}): User => job('block-stream', { device, ...more });
const commit = (more = {}): User => job('block-commit', { device: 'C', ...more });
const mirror = (device: string, target: string, sync = 'full'): User =>
  job('blockdev-mirror', { device, target, sync });
const backup = (device: string, target: string, sync = 'full'): User =>
  job('blockdev-backup', { device, target, sync });
const change = (command: string, args: { [key: string]: unknown }): User => ({
  command,
  arguments: args,
  leaves: 'change',
});
const create = (options: object): User => ({
  command: 'blockdev-create',
  arguments: { 'job-id': 'j', options },
  leaves: 'created',
});

const pairs = (texts: string, make: (one: string, other: string) => User): Array<[string, User]> =>
  texts.split(' ').map((text) => [text, make(text.charAt(0), text.charAt(1))]);
const named = (kind: string, users: Array<[string, User]>): Array<[string, User]> =>
  users.map(([name, user]) => [`${kind} ${name}`, user]);
const ofEach = (kind: string, nodes: string, make: (node: string) => User): Array<[string, User]> =>
  nodes.split('').map((node) => [`${kind} ${node}`, make(node)]);

const EXPORTS = [
  ...ofEach('read', 'ABCET', (node) => exported(node, false)),
  ...ofEach('write', 'ABCET', (node) => exported(node, true)),
];

const STREAMS: Array<[string, User]> = [
  ['stream C', stream('C')],
  ['stream C down to A', stream('C', { 'base-node': 'A' })],
  ['stream C down to B', stream('C', { 'base-node': 'B' })],
  ['stream C with B', stream('C', { bottom: 'B' })],
  ['stream B', stream('B')],
  ['stream E', stream('E')],
];

const COMMIT_BELOW: [string, User] = ['commit B into A', commit({ 'top-node': 'B', 'base-node': 'A' })];
const ACTIVE_COMMITS: Array<[string, User]> = [
  ['commit C', commit()],
  ['commit C into B', commit({ 'base-node': 'B' })],
];

const MIRRORS = [
  ...named('mirror', pairs('CE CT ES EC BE AE CA ET TE', mirror)),
  ...named(
    'mirror top',
    pairs('CE', (device, target) => mirror(device, target, 'top')),
  ),
  ...named(
    'mirror none',
    pairs('CE', (device, target) => mirror(device, target, 'none')),
  ),
];

const BACKUPS = [
  ...named('backup', pairs('CE CT ES EC BE AE CA CB ET TE', backup)),
  ...named(
    'backup top',
    pairs('CE', (device, target) => backup(device, target, 'top')),
  ),
  ...named(
    'backup none',
    pairs('CE', (device, target) => backup(device, target, 'none')),
  ),
];

const CHANGES = [
  ...ofEach('resize', 'ABCET', (node) =>
    change('block_resize', { 'node-name': node, size: DISK_BYTES + 1024 * 1024 }),
  ),
  ...ofEach('delete', 'ABCET', (node) => change('blockdev-del', { 'node-name': node })),
  ...ofEach('new layer on', 'BCE', (node) =>
    change('blockdev-snapshot-sync', {
      ...{ 'node-name': node, 'snapshot-file': 'new', 'snapshot-node-name': 'N' },
    }),
  ),
  ...named(
    'layer',
    pairs('CE ES EC AE BE', (node, overlay) => change('blockdev-snapshot', { node, overlay })),
  ),
  ...named('name', [
    ['B', change('change-backing-file', { device: 'C', 'image-node-name': 'B', 'backing-file': 'a' })],
  ]),
  ...ofEach('format', 'ET', (file) => create({ driver: 'qcow2', file, size: 1024 * 1024 })),
  ...ofEach('make file', 'abcet', (filename) => create({ driver: 'file', filename, size: DISK_BYTES })),
];

/** Who may be there first. */
export const FIRST_USERS: ReadonlyMap<string, User> = new Map([
  ...EXPORTS,
  ...STREAMS,
  ...ACTIVE_COMMITS,
  COMMIT_BELOW,
  ...MIRRORS,
  ...BACKUPS,
]);

/** Who comes then. */
export const SECOND_USERS: ReadonlyMap<string, User> = new Map([...FIRST_USERS, ...CHANGES]);

/** Jobs that wait for their end to be asked for, READY. */
export const READY_USERS: ReadonlyMap<string, User> = new Map([...ACTIVE_COMMITS, ...MIRRORS]);

/** Jobs that wait for their end to be asked for, PENDING. */
export const PENDING_USERS: ReadonlyMap<string, User> = new Map([
  ...STREAMS,
  COMMIT_BELOW,
  ...BACKUPS.filter(([name]) => !name.startsWith('backup none')),
]);
