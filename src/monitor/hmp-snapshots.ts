import { toBlockError } from '../base/error.js';
import type { InternalSnapshot } from '../block/driver.js';
import { findByName, snapshotsOf } from '../block/internal-snapshots.js';
import type { Node } from '../block/node.js';
import { commitDrives, type CommittingDrives } from './commit-drive.js';
import { HmpSyntaxError } from './hmp-arguments.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import type { Parts } from './parts.js';
import { snapshotRows } from './image-text.js';
import { deleteVm, imagesOf, loadVm, saveVm, vmStateNode } from './vm-snapshots.js';

export type HmpSnapshots = CommittingDrives & Parts<'registry' | 'host' | 'runState'>;

const DEVICE = { missing: 'block device name expected' } as const;
const TEXT = { missing: 'string expected' } as const;
const NUMBER = { missingWord: 'unexpected end of expression' } as const;
const INDENT = '\n\t\t\t';
const MUST_SUPPORT = `The format of the image used by device must${INDENT}support it, such as qcow2.${INDENT}`;
const LIMITS = ['bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd', 'iops_wr'] as const;

/** Snapshots of a machine and inside images, and what else is about single drives. */
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
    run: (engine, { operands: [name = ''] }) => commitDrives(engine, name),
  },
  {
    name: 'delvm',
    parameters: 'tag',
    help: 'delete a VM snapshot from its tag',
    syntax: { operands: [TEXT] },
    run: (engine, { operands: [tag = ''] }) => silent(deleteVm(engine, tag)),
  },
  {
    name: 'loadvm',
    parameters: 'tag',
    help: 'restore a VM snapshot from its tag',
    syntax: { operands: [TEXT] },
    run: (engine, { operands: [tag = ''] }) => silent(loadVm(engine, tag)),
  },
  {
    name: 'savevm',
    parameters: 'tag',
    help: 'save a VM snapshot. If no tag is provided, a new snapshot is created',
    syntax: { operands: ['optional'] },
    run: (engine, { operands: [tag] }) =>
      silent(saveVm(engine, tag ?? nameOfNow(engine), { replaces: tag !== undefined })),
  },
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

async function silent(work: Promise<void>): Promise<string> {
  await work;
  return '';
}

/** As QEMU names what has no name: by local time. */
function nameOfNow({ host }: HmpSnapshots): string {
  const date = new Date(host.clock.wallClock().seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = [date.getMonth() + 1, date.getDate(), date.getHours(), date.getMinutes(), date.getSeconds()];
  return `vm-${date.getFullYear()}${day.map(two).join('')}`;
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
    run: (engine) => snapshotsText(engine),
  },
];

/** Snapshots that all images have, and those that only some have. */
function snapshotsText(engine: HmpSnapshots): string {
  const nodes = imagesOf(engine);
  let first: Node;
  try {
    first = vmStateNode(engine, nodes);
  } catch (error) {
    return `${toBlockError(error).message}\n`;
  }
  const lists = nodes.map((node) => ({ node, list: snapshotsOf(node)?.list ?? [] }));
  if (lists.every(({ list }) => list.length === 0)) return 'There is no snapshot available.\n';
  const isCommon = ({ name }: InternalSnapshot): boolean => nodes.every((node) => findByName(node, name));
  // Numbers are each image's own.
  const common = (snapshotsOf(first)?.list ?? []).filter(isCommon).map(({ info }) => ({ ...info, id: '--' }));
  let text = 'List of snapshots present on all disks:\n';
  text += common.length > 0 ? snapshotRows(common) : 'None\n';
  for (const { node, list } of lists) {
    const partial = list.filter((one) => !isCommon(one)).map(({ info }) => info);
    if (partial.length === 0) continue;
    text += `\nList of partial (non-loadable) snapshots on '${node.label}':\n${snapshotRows(partial)}`;
  }
  return text;
}
