import { BlockError } from '../base/error.js';
import { HmpSyntaxError } from './hmp-arguments.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import type { Parts } from './parts.js';
import { listDisks } from './query.js';

export type HmpSnapshots = Parts<'registry' | 'graph' | 'devices' | 'drives'>;

const DEVICE = { missing: 'block device name expected' } as const;
const TEXT = { missing: 'string expected' } as const;
const NUMBER = { missingWord: 'unexpected end of expression' } as const;
const INDENT = '\n\t\t\t';
const MUST_SUPPORT = `The format of the image used by device must${INDENT}support it, such as qcow2.${INDENT}`;
const LIMITS = ['bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd', 'iops_wr'] as const;

/** Snapshots of a machine and inside images, which are not made here, and what else is about single drives. */
export const SNAPSHOT_COMMANDS: ReadonlyArray<HmpCommand<HmpSnapshots>> = [
  {
    name: 'block_set_io_throttle',
    parameters: 'device bps bps_rd bps_wr iops iops_rd iops_wr',
    help: 'change I/O throttle limits for a block drive',
    syntax: { operands: [DEVICE, ...LIMITS.map(() => NUMBER)] },
    run: (engine, { operands: [device = '', ...numbers] }) => {
      const limits = LIMITS.map((name, i): [string, number] => [
        name,
        numberOf(numbers[i] ?? '', 'block_set_io_throttle'),
      ]);
      return runQmp(engine, 'block_set_io_throttle', { device, ...Object.fromEntries(limits) });
    },
  },
  {
    name: 'commit',
    parameters: 'device|all',
    help: 'commit changes to the disk images (if -snapshot is used) or backing files',
    syntax: { operands: [DEVICE] },
    run: (engine, { operands: [name = ''] }) => commit(engine, name),
  },
  vmSnapshot('delvm', 'delete a VM snapshot from its tag', TEXT),
  vmSnapshot('loadvm', 'restore a VM snapshot from its tag', TEXT),
  vmSnapshot('savevm', 'save a VM snapshot. If no tag is provided, a new snapshot is created', 'optional'),
  {
    name: 'snapshot_blkdev_internal',
    parameters: 'device name',
    help: `take an internal snapshot of device.${INDENT}${MUST_SUPPORT}`,
    syntax: { operands: [DEVICE, TEXT] },
    run: (engine, { operands: [device = '', name = ''] }) =>
      runQmp(engine, 'blockdev-snapshot-internal-sync', { device, name }),
  },
  {
    name: 'snapshot_delete_blkdev_internal',
    parameters: 'device name [id]',
    help:
      `delete an internal snapshot of device.${INDENT}If id is specified, qemu will try delete` +
      `${INDENT}the snapshot matching both id and name.${INDENT}${MUST_SUPPORT}`,
    syntax: { operands: [DEVICE, TEXT, 'optional'] },
    run: (engine, { operands: [device = '', name = '', id] }) =>
      runQmp(engine, 'blockdev-snapshot-delete-internal-sync', { device, name, id }),
  },
];

function vmSnapshot(
  name: string,
  help: string,
  operand: { missing: string } | 'optional',
): HmpCommand<HmpSnapshots> {
  return {
    name,
    parameters: 'tag',
    help,
    syntax: { operands: [operand] },
    run: (engine) => refuseVmSnapshot(engine),
  };
}

/** No image takes a snapshot inside itself. Errors: unsupported, which names the first disk in QEMU's words. */
function refuseVmSnapshot(engine: HmpSnapshots): never {
  const disk = listDisks(engine).find(({ backend }) => backend.root?.node.readOnly === false);
  if (!disk) throw new BlockError('unsupported', 'No block device can accept snapshots');
  const { backend } = disk;
  const name = backend.name === '' ? backend.node.name : backend.name;
  throw new BlockError('unsupported', `Device '${name}' is writable but does not support snapshots`);
}

/** Of images with a backing file: refused. Others have nothing to commit, in QEMU's words. */
function commit(engine: HmpSnapshots, wanted: string): string {
  const named = (name: string): boolean => wanted === 'all' || name === wanted;
  const disks = listDisks(engine).filter(({ backend }) => named(backend.name));
  if (wanted !== 'all' && disks.length === 0) return `Device '${wanted}' not found\n`;
  for (const { backend } of disks) {
    if (backend.root?.node.backingNode()) {
      const text = `commit of '${backend.name}' is not supported by livedisk`;
      throw new BlockError('unsupported', `${text}; block-commit of QMP merges it into its backing file`);
    }
    if (wanted !== 'all')
      return backend.root
        ? `'commit' error for '${wanted}': Operation not supported\n`
        : `Device '${wanted}' has no medium\n`;
  }
  return '';
}

function numberOf(text: string, command: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  const what = `invalid char '${text.replace(/^\d+/, '').charAt(0)}' in expression`;
  throw new HmpSyntaxError(`${what}\nTry "help ${command}" for more information`);
}

export const SNAPSHOT_INFO: ReadonlyArray<HmpCommand<HmpSnapshots>> = [
  {
    name: 'snapshots',
    parameters: '',
    help: 'show the currently saved VM snapshots',
    syntax: {},
    // Those of single images are shown with them.
    run: () => 'There is no snapshot available.\n',
  },
];
