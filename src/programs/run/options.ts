import { resolve } from 'node:path';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { NodeOptions } from '../../block/driver.js';
import type { DriveInterface } from '../../attach/drive.js';
import type { ServerProperties } from '../../attach/exports.js';
import type { RunActions } from '../../attach/run-state.js';
import type { SocketAddress } from '../../host/host.js';
import { BlockExportOptions } from '../../schema/commands.js';
import type { ObjectOptions } from '../../schema/objects.js';
import { BlockdevOptions, SocketAddress as SocketAddressType } from '../../schema/block-types.js';
import {
  bool,
  enumOf,
  int,
  type JsonObject,
  optional,
  required,
  str,
  struct,
  uint32,
} from '../../schema/types.js';
import { socketAddress, tlsOf } from '../../monitor/exports.js';
import { parseKeyval } from '../arguments/keyval.js';
import { type DriveOptions, parseDrive } from '../arguments/drive-options.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { objectHelp, parseObject } from '../arguments/objects.js';
import { type MetricsOption, parseMetrics } from './metrics.js';
import {
  checkUuid,
  FLAGS_WITHOUT_EFFECT,
  guestName,
  isHelp,
  machineType,
  UNSUPPORTED_OPTIONS,
  parseMemory,
  VALUED_WITHOUT_EFFECT,
} from './machine-options.js';
import type { Question } from './help.js';
import {
  type CharacterDeviceOption,
  MULTIPLEXED_STDIO,
  parseAddress,
  parseCharacterDevice,
} from '../arguments/character-devices.js';

/** A step of the start, in the order in which programs of QEMU take them. `text` is named in errors, unless empty. */
export type Step =
  | { kind: 'object'; options: ObjectOptions; text: string }
  | { kind: 'descriptor'; fd: number; setId: number; opaque: string | undefined; text: string }
  | { kind: 'blockdev'; options: NodeOptions; text: string }
  | { kind: 'nbd-server'; address: SocketAddress; properties: ServerProperties; text: string }
  | { kind: 'export'; options: BlockExportOptions; text: string }
  | { kind: 'drive'; options: DriveOptions; usual: DriveInterface; text: string }
  | { kind: 'device'; options: JsonObject; mode: 'qmp' | 'keyval'; text: string }
  | { kind: 'chardev'; device: CharacterDeviceOption; text: string }
  | { kind: 'monitor'; chardev: string; isControl: boolean; pretty: boolean; text: string }
  /** A monitor and a silent console on standard input and output. */
  | { kind: 'multiplexed'; text: string }
  /** What is wrong is told when its turn has come. */
  | { kind: 'wrong'; error: unknown; text: '' };

export interface RunOptions {
  steps: Step[];
  /** Of old forms; each names the option. */
  warnings: string[];
  startStopped: boolean;
  /** Where the machine's state comes from. */
  incoming: string | undefined;
  /** The saved state in which the machine begins. */
  loadvm: string | undefined;
  actions: Partial<RunActions>;
  pidFile: string | undefined;
  metrics: MetricsOption | undefined;
  /** The folder that keeps what the daemon is. */
  state: string | undefined;
  /** Of images that others stand on. */
  protectsSharedBases: boolean;
  sharedBasesFolders: string[];
  machine: string;
  /** Of the guest. */
  name: string | undefined;
  uuid: string | undefined;
  memoryBytes: number | undefined;
  /** Drives that do not say else keep nothing of what is written. */
  isSnapshot: boolean;
  daemonize: boolean;
  /** Options without a value that were given. */
  flags: Set<string>;
  /** A monitor was asked for, or none. */
  hasMonitor: boolean;
  /** What -serial was given last. */
  serial: string | undefined;
  /** -parallel was given. */
  hasParallel: boolean;
  /** What to print in place of all else. */
  asks: Question | undefined;
}

export const DEFAULT_MACHINE = 'pc';

type Take = (value: string, text: string) => void;

/** Errors: kind invalid or unsupported, naming the option. */
export function parseRunOptions(args: readonly string[], kind: 'machine' | 'storage-daemon'): RunOptions {
  const options: RunOptions = {
    steps: [],
    warnings: [],
    startStopped: false,
    incoming: undefined,
    loadvm: undefined,
    actions: {},
    pidFile: undefined,
    metrics: undefined,
    state: undefined,
    protectsSharedBases: false,
    sharedBasesFolders: [],
    machine: DEFAULT_MACHINE,
    name: undefined,
    uuid: undefined,
    memoryBytes: undefined,
    isSnapshot: false,
    daemonize: false,
    flags: new Set(),
    hasMonitor: false,
    serial: undefined,
    hasParallel: false,
    asks: undefined,
  };
  const valued = valuedOptions(options, kind);
  const flags = machineFlags(options);
  if (kind === 'storage-daemon') args = args.flatMap(splitLongOption);
  for (let i = 0; i < args.length; i++) {
    const given = args[i] ?? '';
    const name = given.replace(/^--/, '-');
    if (name === '-h' || name === '-help') options.asks ??= 'help';
    else if (given === '-V' || name === '-version') options.asks ??= 'version';
    else if (name === '-daemonize') options.daemonize = true;
    else if (name === '-protect-shared-bases') options.protectsSharedBases = true;
    else if (kind === 'machine' && Object.hasOwn(flags, name)) flags[name]?.();
    else {
      const take = Object.hasOwn(valued, name) ? valued[name] : undefined;
      if (!take && kind === 'machine' && !given.startsWith('-')) {
        inContext(given, () => addImage(options, given));
        continue;
      }
      if (!take) throw unknownOption(given, kind);
      const value = args[++i];
      if (value === undefined) throw new BlockError('invalid', `${given}: requires an argument`);
      const text = `${given} ${value}`;
      if (kind === 'machine') inContext(text, () => take(value, text));
      else takeInTurn(options, () => inContext(text, () => take(value, text)));
    }
  }
  if (kind === 'machine') takeNoGraphic(options);
  if (options.isSnapshot)
    for (const step of options.steps) if (step.kind === 'drive') step.options.isSnapshot ??= true;
  // A machine's objects come first; a storage daemon takes all in their order.
  const isEarly = (step: Step): boolean => ['object', 'descriptor', 'chardev'].includes(step.kind);
  const rest = options.steps.filter((step) => !isEarly(step));
  if (kind === 'storage-daemon') return options;
  options.steps = LATE.reduce(
    (steps, late) => [
      ...steps.filter((step) => step.kind !== late),
      ...steps.filter((step) => step.kind === late),
    ],
    [...options.steps.filter(isEarly), ...rest],
  );
  return options;
}

/** What is wrong with an option of a storage daemon is told after those before it have been done, and none after it is. */
function takeInTurn({ steps }: RunOptions, take: () => void): void {
  if (steps.at(-1)?.kind === 'wrong') return;
  try {
    take();
  } catch (error) {
    steps.push({ kind: 'wrong', error, text: '' });
  }
}

/** Steps that come after all others, in this order. */
const LATE: ReadonlyArray<Step['kind']> = ['drive', 'device', 'monitor', 'multiplexed'];

function machineFlags(options: RunOptions): Record<string, () => void> {
  const none = [...FLAGS_WITHOUT_EFFECT].map((name): [string, () => void] => [
    name,
    () => void options.flags.add(name),
  ]);
  const refused = [...UNSUPPORTED_OPTIONS].filter(([, form]) => form === 'flag');
  return {
    ...Object.fromEntries(none),
    ...Object.fromEntries(refused.map(([name]) => [name, () => refuse(name)])),
    '-S': () => void (options.startStopped = true),
    '-snapshot': () => void (options.isSnapshot = true),
    '-no-reboot': () => void (options.actions.reboot = 'shutdown'),
    '-no-shutdown': () => void (options.actions.shutdown = 'pause'),
  };
}

function refuse(name: string): never {
  throw new BlockError('unsupported', `${name}: not supported by livedisk`);
}

/** --NAME=VALUE as two words; a value that follows its option has no such name before its first "=". */
function splitLongOption(word: string): string[] {
  const [, name, value] = /^(--[a-z-]+)=(.*)$/s.exec(word) ?? [];
  return name === undefined || value === undefined ? [word] : [name, value];
}

function unknownOption(given: string, kind: string): BlockError {
  if (!given.startsWith('-')) return new BlockError('invalid', `${given}: Unexpected argument`);
  if (kind === 'storage-daemon') return new BlockError('invalid', `unrecognized option '${given}'`);
  return new BlockError('invalid', `${given}: invalid option`);
}

/** Names the option in what goes wrong with it, as QEMU's programs do. */
export function inContext<T>(text: string, body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw withContext(text, error);
  }
}

export function withContext(text: string, error: unknown): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.kind, `${text}: ${error.message}`, { cause: error });
}

function valuedOptions(options: RunOptions, kind: 'machine' | 'storage-daemon'): Record<string, Take> {
  const { steps } = options;
  const ids = new Set<string>();
  const addDevice = (device: CharacterDeviceOption, text: string): void => {
    if (ids.has(device.id)) throw new BlockError('exists', `Duplicate ID '${device.id}' for chardev`);
    ids.add(device.id);
    steps.push({ kind: 'chardev', device, text });
  };
  const common: Record<string, Take> = {
    '-blockdev': (value, text) => steps.push({ kind: 'blockdev', options: parseBlockdev(value), text }),
    '-nbd-server': (value, text) => steps.push({ kind: 'nbd-server', ...parseNbdServer(value), text }),
    '-export': (value, text) => {
      const parsed = BlockExportOptions.parse(parseKeyval(value, 'type'), '', inputMode(value));
      steps.push({ kind: 'export', options: parsed, text });
    },
    '-chardev': (value, text) => addDevice(parseCharacterDevice(value), text),
    '-pidfile': (value) => void (options.pidFile = value),
    '-metrics': (value) => void (options.metrics = parseMetrics(value)),
    '-state': (value) => void (options.state = resolve(value)),
    '-shared-bases-folder': (value) => void options.sharedBasesFolders.push(value),
    '-object': (value, text) => {
      const help = objectHelp(value);
      if (help === undefined)
        steps.push({ kind: 'object', options: parseObject(value), text: kind === 'machine' ? '' : text });
      else options.asks ??= { text: help };
    },
  };
  const monitor: Take = (value, text) => {
    const { chardev, mode, pretty } = MONITOR.parse(parseKeyval(value, 'chardev'), '', 'keyval');
    const isControl = (mode ?? (kind === 'machine' ? 'readline' : 'control')) === 'control';
    if (!isControl && kind === 'storage-daemon') throw new BlockError('invalid', 'Only QMP is supported');
    if (!isControl && pretty === true)
      throw new BlockError('invalid', "'pretty' is not compatible with HMP monitors");
    options.hasMonitor = true;
    steps.push({ kind: 'monitor', chardev, isControl, pretty: pretty ?? false, text });
  };
  if (kind === 'storage-daemon') return { ...common, '-monitor': monitor };
  const direct =
    (isControl: boolean, pretty: boolean): Take =>
    (value, text) => {
      options.hasMonitor = true;
      if (value === 'none') return;
      const chardev = `compat_monitor${[...ids].filter((id) => id.startsWith('compat_monitor')).length}`;
      addDevice(parseAddress(value, chardev), text);
      steps.push({ kind: 'monitor', chardev, isControl, pretty, text });
    };
  return {
    ...common,
    ...VALUED_WITHOUT_EFFECT,
    ...Object.fromEntries(
      [...UNSUPPORTED_OPTIONS]
        .filter(([, form]) => form === 'valued')
        .map(([name]): [string, Take] => [name, () => refuse(name)]),
    ),
    ...driveOptions(options),
    '-mon': monitor,
    '-add-fd': (value, text) => steps.push({ kind: 'descriptor', ...parseDescriptor(value), text }),
    '-monitor': direct(false, false),
    '-qmp': direct(true, false),
    '-qmp-pretty': direct(true, true),
    '-device': (value, text) => takeDevice(options, value, text),
    '-M': (value) => takeMachine(options, value),
    '-machine': (value) => takeMachine(options, value),
    '-name': (value) => void (options.name = guestName(value)),
    '-m': (value) => void (options.memoryBytes = parseMemory(value)),
    '-uuid': (value) => void (options.uuid = checkUuid(value)),
    '-serial': (value, text) => takeSerial(options, value, text),
    '-loadvm': (value) => void (options.loadvm = value),
    '-incoming': (value) => void (options.incoming = value),
    '-action': (value) => void Object.assign(options.actions, parseActions(value)),
    '-parallel': () => void (options.hasParallel = true),
  };
}

/** No guest writes to a serial line; but a monitor may be on the same terminal. */
function takeSerial(options: RunOptions, value: string, text: string): void {
  options.serial = value;
  if (value !== MULTIPLEXED_STDIO) return;
  options.hasMonitor = true;
  options.steps.push({ kind: 'multiplexed', text });
}

/** Whether something of the machine has no other place than the program's terminal, when there is no display. */
export function needsTerminal({ flags, hasMonitor, serial, hasParallel, machine }: RunOptions): boolean {
  if (!flags.has('-nographic') || flags.has('-nodefaults')) return false;
  return !hasMonitor || (machine !== 'none' && (serial === undefined || !hasParallel));
}

/** Without a display, the terminal is the console's and the monitor's. */
function takeNoGraphic(options: RunOptions): void {
  const { flags, hasMonitor, serial, machine, steps } = options;
  if (!flags.has('-nographic') || flags.has('-nodefaults') || hasMonitor) return;
  // Where there is no serial line the monitor is there alone.
  if (serial === undefined && machine !== 'none') steps.push({ kind: 'multiplexed', text: '-nographic' });
  else {
    const device = parseAddress('stdio', 'compat_monitor0');
    steps.push({ kind: 'chardev', device, text: '-nographic' });
    steps.push({ kind: 'monitor', chardev: device.id, isControl: false, pretty: false, text: '-nographic' });
  }
}

function inputMode(value: string): 'qmp' | 'keyval' {
  return value.startsWith('{') ? 'qmp' : 'keyval';
}

const MONITOR = struct('MonitorOptions', {
  chardev: required(str),
  id: optional(str),
  mode: optional(enumOf('MonitorMode', ['readline', 'control'])),
  pretty: optional(bool),
});

function parseBlockdev(value: string): NodeOptions {
  return BlockdevOptions.parse(parseKeyval(value, 'driver'), '', inputMode(value));
}

const DESCRIPTOR = struct('add-fd', { fd: optional(int), set: optional(int), opaque: optional(str) });
const LAST_STANDARD_STREAM = 2;

function parseDescriptor(value: string): { fd: number; setId: number; opaque: string | undefined } {
  const { fd = -1, set = -1, opaque } = DESCRIPTOR.parse(parseKeyval(value), '', 'keyval');
  if (fd < 0) throw new BlockError('invalid', 'fd option is required and must be non-negative');
  if (fd <= LAST_STANDARD_STREAM) throw new BlockError('invalid', 'fd cannot be a standard I/O stream');
  if (set < 0) throw new BlockError('invalid', 'set option is required and must be non-negative');
  return { fd, setId: set, opaque };
}

const NBD_SERVER = struct('NbdServerOptions', {
  addr: required(SocketAddressType),
  'max-connections': optional(uint32),
  'handshake-max-seconds': optional(uint32),
  'tls-creds': optional(str),
  'tls-authz': optional(str),
});

function parseNbdServer(value: string): { address: SocketAddress; properties: ServerProperties } {
  const parsed = NBD_SERVER.parse(parseKeyval(value), '', inputMode(value));
  return {
    address: socketAddress(parsed.addr),
    properties: given({
      maxConnections: parsed['max-connections'],
      handshakeMaxSeconds: parsed['handshake-max-seconds'],
      tls: tlsOf(parsed),
    }),
  };
}

/** What a panic and a watchdog do is of no use: no processor runs. */
const ACTIONS = struct('RunStateActions', {
  reboot: optional(enumOf('RebootAction', ['reset', 'shutdown'])),
  shutdown: optional(enumOf('ShutdownAction', ['poweroff', 'pause'])),
  panic: optional(enumOf('PanicAction', ['pause', 'shutdown', 'exit-failure', 'none'])),
  watchdog: optional(
    enumOf('WatchdogAction', [
      ...(['reset', 'shutdown', 'poweroff', 'pause', 'debug', 'none', 'inject-nmi'] as const),
    ]),
  ),
});

function parseActions(value: string): Partial<RunActions> {
  const { reboot, shutdown } = ACTIONS.parse(parseKeyval(value), '', 'keyval');
  return given({ reboot, shutdown });
}

function takeMachine(options: RunOptions, value: string): void {
  if (isHelp(value)) options.asks ??= 'machines';
  else options.machine = machineType(value) ?? options.machine;
}

function takeDevice(options: RunOptions, value: string, text: string): void {
  if (isHelp(value)) {
    const [model = ''] = value.split(',');
    options.asks ??= isHelp(model) ? 'devices' : { properties: model };
    return;
  }
  const device = parseDevice(value, warnOf(options, text));
  options.steps.push({ kind: 'device', options: device, mode: inputMode(value), text });
}

/** Old options: the last of equal names counts, and a name alone is a flag. */
function parseDevice(value: string, warn: (text: string) => void): JsonObject {
  if (value.startsWith('{')) return parseKeyval(value);
  const flat = parseImageOpts(value, { impliedKey: 'driver', warn });
  return Object.fromEntries(flat.entries());
}

/** -drive, and the old options that are short for it. */
function driveOptions(options: RunOptions): Record<string, Take> {
  const short =
    (rest: string): Take =>
    (value, text) =>
      addDrive(options, `file=${value.replaceAll(',', ',,')},${rest}`, text);
  const disks = ['a', 'b', 'c', 'd'].map((letter, i): [string, Take] => [
    `-hd${letter}`,
    short(`index=${i},media=disk`),
  ]);
  const floppies = ['a', 'b'].map((letter, i): [string, Take] => [
    `-fd${letter}`,
    short(`index=${i},if=floppy`),
  ]);
  return {
    ...Object.fromEntries([...disks, ...floppies]),
    '-cdrom': short('index=2,media=cdrom'),
    '-mtdblock': short('if=mtd'),
    '-pflash': short('if=pflash,format=raw'),
    '-sd': short('if=sd'),
    '-drive': (value, text) => {
      if (/(^|,)(format|driver)=(help|\?)(,|$)/.test(value)) options.asks ??= 'formats';
      else addDrive(options, value, text);
    },
  };
}

function warnOf({ warnings }: RunOptions, text: string): (warning: string) => void {
  return (warning) => void warnings.push(`${text}: warning: ${warning}`);
}

function addDrive(options: RunOptions, value: string, text: string): void {
  const drive = parseDrive(value, warnOf(options, text));
  options.steps.push({ kind: 'drive', options: drive, usual: 'ide', text });
}

/** An image that is given by itself is the first hard disk. */
function addImage(options: RunOptions, filename: string): void {
  addDrive(options, `file=${filename.replaceAll(',', ',,')},index=0,media=disk`, filename);
}
