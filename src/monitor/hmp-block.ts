import { BlockError, hintOf } from '../base/error.js';
import { parseInet } from '../schema/inet-text.js';
import { parseSize } from '../schema/size.js';
import { parseDrive } from '../programs/arguments/drive-options.js';
import { parseImageOpts } from '../programs/arguments/image-opts.js';
import { isJsonOption, parseKeyval } from '../programs/arguments/keyval.js';
import type { JsonValue } from '../schema/types.js';
import { addDevice } from './devices.js';
import { addDrive, removeDrive } from './drives.js';
import { type HmpArguments, HmpSyntaxError, type HmpSyntax } from './hmp-arguments.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import type { Parts } from './parts.js';
import { listDisks } from './query.js';

export type HmpBlock = Parts<
  | 'registry'
  | 'graph'
  | 'opener'
  | 'exports'
  | 'devices'
  | 'drives'
  | 'machine'
  | 'host'
  | 'jobs'
  | 'runState'
> &
  Parts<
    | 'isIncoming'
    | 'moves'
    | 'takeImages'
    | 'lost'
    | 'ioError'
    | 'emit'
    | 'whileOpen'
    | 'temporaryFolder'
    | 'openNode'
    | 'print'
    | 'printError'
    | 'guestProgram'
  >;

const DEVICE = { missing: 'block device name expected' } as const;
const TEXT = { missing: 'string expected' } as const;
const NUMBER = { missing: 'integer expected' } as const;

type Operand = NonNullable<HmpSyntax['operands']>[number];

function operands(...list: Operand[]): readonly Operand[] {
  return list;
}

/** A command that is one QMP command: how its arguments come from what was typed. */
function as(
  name: string,
  qmp: string,
  help: readonly [parameters: string, text: string],
  syntax: HmpSyntax,
  convert: (
    words: readonly string[],
    has: (flag: string) => boolean,
  ) => { [key: string]: JsonValue | undefined },
): HmpCommand<HmpBlock> {
  const [parameters, text] = help;
  return {
    name,
    parameters,
    help: text,
    syntax,
    run: (engine, { flags, operands: words }) =>
      runQmp(
        engine,
        qmp,
        convert(words, (flag) => flags.has(flag)),
      ),
  };
}

const INDENT = '\n\t\t\t';
const REUSE = `The -n flag requests QEMU to reuse the image found${INDENT}in new-image-file, instead of recreating it from scratch.`;

/** Commands about disks, jobs and exports. */
export const BLOCK_COMMANDS: ReadonlyArray<HmpCommand<HmpBlock>> = [
  as(
    'block_job_cancel',
    'block-job-cancel',
    [
      '[-f] device',
      `stop an active background block operation (use -f${INDENT} if you want to abort the operation immediately` +
        `${INDENT} instead of keep running until data is in sync)`,
    ],
    { flags: 'f', operands: operands(DEVICE) },
    ([device = ''], has) => ({ device, force: has('f') }),
  ),
  as(
    'block_job_complete',
    'block-job-complete',
    ['device', 'stop an active background block operation'],
    { operands: operands(DEVICE) },
    ([device = '']) => ({ device }),
  ),
  as(
    'block_job_pause',
    'block-job-pause',
    ['device', 'pause an active background block operation'],
    { operands: operands(DEVICE) },
    ([device = '']) => ({ device }),
  ),
  as(
    'block_job_resume',
    'block-job-resume',
    ['device', 'resume a paused background block operation'],
    { operands: operands(DEVICE) },
    ([device = '']) => ({ device }),
  ),
  as(
    'block_job_set_speed',
    'block-job-set-speed',
    ['device speed', 'set maximum speed for a background block operation'],
    { operands: operands(DEVICE, NUMBER) },
    ([device = '', speed = '']) => ({ device, speed: sizeOf(speed, 'block_job_set_speed') }),
  ),
  as(
    'block_resize',
    'block_resize',
    ['device size', 'resize a block image'],
    { operands: operands(DEVICE, NUMBER) },
    ([device = '', size = '']) => ({ device, size: sizeOf(size, 'block_resize') }),
  ),
  as(
    'block_stream',
    'block-stream',
    ['device [speed [base]]', 'copy data from a backing file into a block device'],
    { operands: operands(DEVICE, 'optional', 'optional') },
    ([device = '', speed, base]) => ({
      'job-id': device,
      device,
      base,
      speed: speed === undefined ? undefined : sizeOf(speed, 'block_stream'),
    }),
  ),
  {
    name: 'change',
    parameters: 'device [-f] filename [format [read-only-mode]]',
    help: 'change a removable medium, optional format, use -f to force the operation',
    syntax: { laterFlags: 'f', operands: operands(DEVICE, TEXT, 'optional', 'optional') },
    run: (engine, { operands: [device, filename, format, mode], flags }) => {
      if (mode !== undefined && !['retain', 'read-only', 'read-write'].includes(mode))
        throw new BlockError('invalid', `invalid parameter value: ${mode}`);
      return runQmp(engine, 'blockdev-change-medium', {
        ...{ device, filename, format, force: flags.has('f') },
        'read-only-mode': mode,
      });
    },
  },
  {
    name: 'device_add',
    parameters: 'driver[,prop=value][,...]',
    help: 'add device, like -device on the command line',
    syntax: { operands: operands('optional') },
    run: async (engine, { operands: [text = ''] }) => {
      const options = parseImageOpts(text, { impliedKey: 'driver', warn: ignore });
      const device = Object.fromEntries(options.entries());
      if (engine.guestProgram) return runQmp(engine, 'device_add', device);
      await addDevice(engine, device, { mode: 'keyval', hot: true });
      return '';
    },
  },
  {
    name: 'device_del',
    parameters: 'device',
    help: 'remove device',
    syntax: { operands: operands(TEXT) },
    run: (engine, { operands: [id = ''] }) => runQmp(engine, 'device_del', { id }),
  },
  {
    name: 'drive_add',
    parameters:
      '[-n] [[<domain>:]<bus>:]<slot>\n[file=file][,if=type][,bus=n]\n[,unit=m][,media=d][,index=i]\n' +
      '[,snapshot=on|off][,cache=on|off]\n[,readonly=on|off][,copy-on-read=on|off]',
    help: 'add drive to PCI storage controller',
    syntax: { flags: 'n', operands: operands(TEXT, TEXT) },
    run: (engine, args) => plainly(() => driveAdd(engine, args)),
  },
  as(
    'drive_backup',
    'drive-backup',
    [
      '[-n] [-f] [-c] device target [format]',
      `initiates a point-in-time${INDENT}copy for a device. The device's contents are${INDENT}copied to the new image ` +
        `file, excluding data that${INDENT}is written after the command is started.${INDENT}${REUSE}${INDENT}The -f flag ` +
        `requests QEMU to copy the whole disk,${INDENT}so that the result does not need a backing file.${INDENT}The -c ` +
        `flag requests QEMU to compress backup data${INDENT}(if the target format supports it).${INDENT}`,
    ],
    { flags: 'nfc', operands: operands(DEVICE, TEXT, 'optional') },
    ([device = '', target = '', format], has) => ({
      ...{ device, target, format, ...copyModes(has) },
      compress: has('c') ? true : undefined,
    }),
  ),
  {
    name: 'drive_del',
    parameters: 'device',
    help: 'remove host block device',
    syntax: { operands: operands(DEVICE) },
    run: (engine, { operands: [id = ''] }) => plainly(() => driveDel(engine, id)),
  },
  as(
    'drive_mirror',
    'drive-mirror',
    [
      '[-n] [-f] device target [format]',
      `initiates live storage${INDENT}migration for a device. The device's contents are${INDENT}copied to the new image ` +
        `file, including data that${INDENT}is written after the command is started.${INDENT}${REUSE}${INDENT}The -f flag ` +
        `requests QEMU to copy the whole disk,${INDENT}so that the result does not need a backing file.${INDENT}`,
    ],
    { flags: 'nf', operands: operands(DEVICE, TEXT, 'optional') },
    ([device = '', target = '', format], has) => ({ device, target, format, ...copyModes(has) }),
  ),
  as(
    'eject',
    'eject',
    ['[-f] device', 'eject a removable medium (use -f to force it)'],
    { flags: 'f', operands: operands(DEVICE) },
    ([device = ''], has) => ({ device, force: has('f') }),
  ),
  as(
    'nbd_server_add',
    'nbd-server-add',
    ['nbd_server_add [-w] device [name]', 'export a block device via NBD'],
    { flags: 'w', operands: operands(DEVICE, 'optional') },
    ([device = '', name], has) => ({ device, name, writable: has('w') }),
  ),
  as(
    'nbd_server_remove',
    'nbd-server-remove',
    ['nbd_server_remove [-f] name', 'remove an export previously exposed via NBD'],
    { flags: 'f', operands: operands(TEXT) },
    ([name = ''], has) => ({ name, mode: has('f') ? 'hard' : 'safe' }),
  ),
  {
    name: 'nbd_server_start',
    parameters: 'nbd_server_start [-a] [-w] host:port',
    help: 'serve block devices on the given host and port',
    syntax: { flags: 'aw', operands: operands(TEXT) },
    run: nbdServerStart,
  },
  as(
    'nbd_server_stop',
    'nbd-server-stop',
    ['nbd_server_stop', 'stop serving block devices using the NBD protocol'],
    {},
    () => ({}),
  ),
  as(
    'snapshot_blkdev',
    'blockdev-snapshot-sync',
    [
      '[-n] device [new-image-file] [format]',
      `initiates a live snapshot${INDENT}of device. If a new image file is specified, the${INDENT}new image file will ` +
        `become the new root image.${INDENT}If format is specified, the snapshot file will${INDENT}be created in that ` +
        `format.${INDENT}The default format is qcow2.  The -n flag requests QEMU${INDENT}to reuse the image found in ` +
        `new-image-file, instead of${INDENT}recreating it from scratch.`,
    ],
    { flags: 'n', operands: operands(DEVICE, 'optional', 'optional') },
    ([device = '', file, format], has) => ({
      ...{ device, format, mode: has('n') ? 'existing' : 'absolute-paths' },
      'snapshot-file': file,
    }),
  ),
];

function ignore(): void {
  // Nobody is told of old forms here.
}

function copyModes(has: (flag: string) => boolean): { sync: string; mode: string } {
  return { sync: has('f') ? 'full' : 'top', mode: has('n') ? 'existing' : 'absolute-paths' };
}

/** A number with a suffix; without one, megabytes. Errors: HmpSyntaxError. */
function sizeOf(text: string, command: string): number {
  const bytes = parseSize(/\d$/.test(text) ? `${text}M` : text);
  if (bytes === undefined)
    throw new HmpSyntaxError(`invalid size\nTry "help ${command}" for more information`);
  return bytes;
}

/** What goes wrong is printed without more ado, as QEMU does here. */
async function plainly(body: () => Promise<string>): Promise<string> {
  try {
    return await body();
  } catch (error) {
    if (error instanceof BlockError) return `${error.message}\n${hintOf(error)}`;
    throw error;
  }
}

async function driveAdd(engine: HmpBlock, { flags, operands: [, text = ''] }: HmpArguments): Promise<string> {
  if (flags.has('n')) {
    const options = isJsonOption(text) ? parseKeyval(text) : parseKeyval(text, 'driver');
    if (options['node-name'] === undefined) return "'node-name' needs to be specified\n";
    await engine.openNode(
      engine.opener.drivers.gate.type.parse(options, '', isJsonOption(text) ? 'qmp' : 'keyval'),
    );
    return '';
  }
  const options = parseDrive(text, ignore);
  const kind = options.interface ?? 'ide';
  if (kind !== 'none') {
    const number = ['none', 'ide', 'scsi', 'floppy', 'pflash', 'mtd', 'sd', 'virtio', 'xen'].indexOf(kind);
    return `Can't hot-add drive to type ${number}\n`;
  }
  await addDrive(engine, options);
  return 'OK\n';
}

/** A drive, or a node that the user has added. */
async function driveDel(engine: HmpBlock, id: string): Promise<string> {
  const drive = engine.drives.get(id);
  if (drive) {
    if (drive.backend.root) drive.backend.node.assertNotBlocked();
    await engine.exports.removeOf(drive.backend);
    await removeDrive(engine, drive);
    return '';
  }
  if (!engine.graph.nodes.has(id)) return `Device '${id}' not found\n`;
  return runQmp(engine, 'blockdev-del', { 'node-name': id });
}

async function nbdServerStart(
  engine: HmpBlock,
  { flags, operands: [address = ''] }: HmpArguments,
): Promise<string> {
  const isAll = flags.has('a');
  if (flags.has('w') && !isAll) throw new BlockError('invalid', '-w only valid together with -a');
  await runQmp(engine, 'nbd-server-start', { addr: addressOf(address) });
  if (!isAll) return '';
  try {
    for (const { backend } of listDisks(engine))
      if (backend.name !== '' && backend.root)
        await runQmp(engine, 'nbd-server-add', { device: backend.name, writable: flags.has('w') });
  } catch (error) {
    await runQmp(engine, 'nbd-server-stop');
    throw error;
  }
  return '';
}

/** Errors: invalid, in QEMU's words. */
function addressOf(text: string): JsonValue {
  const [, scheme, rest = ''] = /^(unix|fd|tcp):(.*)$/s.exec(text) ?? [];
  if (scheme === 'unix') {
    if (rest === '') throw new BlockError('invalid', 'invalid Unix socket address');
    return { type: 'unix', data: { path: rest } };
  }
  if (scheme === 'fd') return { type: 'fd', data: { str: rest } };
  return { type: 'inet', data: { ...parseInet(scheme === 'tcp' ? rest : text) } };
}
