import { resolve } from 'node:path';
import { BlockError } from '../../base/error.js';
import type { RunActions } from '../../attach/run-state.js';
import { parseDrive } from '../arguments/drive-options.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { parseLog } from '../arguments/log.js';
import { objectHelp, parseObject } from '../arguments/objects.js';
import { parseTrace, traceHelp, type TraceOptions } from '../arguments/trace.js';
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
import { readLongOptions } from './long-options.js';
import type { Step } from './step.js';
import {
  inputMode,
  parseActions,
  parseBlockdev,
  parseDescriptor,
  parseDevice,
  parseExport,
  parseMonitor,
  parseNbdServer,
  sameDevice,
} from './option-values.js';
import {
  characterDeviceHelp,
  type CharacterDeviceOption,
  devicesOf,
  MULTIPLEXED_STDIO,
  parseAddress,
  parseCharacterDevice,
} from '../arguments/character-devices.js';

export interface RunOptions {
  steps: Step[];
  /** Told of old forms; each names the option. */
  warn: (text: string) => void;
  startStopped: boolean;
  /** Where the machine's state comes from. */
  incoming: string | undefined;
  /** The saved state in which the machine begins. */
  loadvm: string | undefined;
  actions: Partial<RunActions>;
  pidFile: string | undefined;
  metrics: MetricsOption | undefined;
  metricsText: string | undefined;
  /** What --trace was given, and -d of trace points; "text" names each, unless empty. */
  traces: Array<{ options: TraceOptions; text: string }>;
  /** Lines of traces begin with the process and the time (-msg timestamp=on). */
  hasTimestamps: boolean;
  /** Where they go unless a trace option says else (-D). */
  logFile: string | undefined;
  /** What -d was given last. */
  logItems: string | undefined;
  /** The folder that keeps what the daemon is. */
  state: string | undefined;
  /** The socket at which it waits to take the place of a process that serves. */
  takeover: string | undefined;
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

/** A storage daemon's without a value. */
const FLAGS = new Set(['--help', '--version', '--daemonize', '--protect-shared-bases']);

const nobody = (): undefined => undefined;

type Take = (value: string, text: string) => void;

/** Errors: kind invalid or unsupported, naming the option. */
export function parseRunOptions(
  args: readonly string[],
  kind: 'machine' | 'storage-daemon',
  warn: RunOptions['warn'] = nobody,
): RunOptions {
  const options: RunOptions = {
    steps: [],
    warn,
    startStopped: false,
    incoming: undefined,
    loadvm: undefined,
    actions: {},
    pidFile: undefined,
    metrics: undefined,
    metricsText: undefined,
    traces: [],
    hasTimestamps: false,
    logFile: undefined,
    logItems: undefined,
    state: undefined,
    takeover: undefined,
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
  const isFlag = (name: string): boolean | undefined =>
    FLAGS.has(name) ? true : Object.hasOwn(valued, name.slice(1)) ? false : undefined;
  if (kind === 'storage-daemon') args = readLongOptions(args, isFlag);
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
      if (!take && kind === 'machine') throw new BlockError('invalid', `${given}: invalid option`);
      if (!take) {
        const error = new BlockError('invalid', `${given}: Unexpected argument`);
        takeInTurn(options, () => {
          throw error;
        });
        continue;
      }
      const value = args[++i];
      if (value === undefined) throw new BlockError('invalid', `${given}: requires an argument`);
      const text = `${given} ${value}`;
      if (kind === 'machine') inContext(text, () => take(value, text));
      else takeInTurn(options, () => inContext(text, () => take(value, text)));
    }
  }
  if (kind === 'machine') takeNoGraphic(options);
  takeLog(options);
  checkTogether(options);
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

/** Errors: invalid, in QEMU's words, for options of which only one may be there. */
function checkTogether({ loadvm, incoming, flags }: RunOptions): void {
  const isPreconfig = flags.has('-preconfig');
  if (loadvm !== undefined && incoming !== undefined)
    throw new BlockError('invalid', "'incoming' and 'loadvm' options are mutually exclusive");
  if (loadvm !== undefined && isPreconfig)
    throw new BlockError('invalid', "'preconfig' and 'loadvm' options are mutually exclusive");
  if (isPreconfig) refuse('-preconfig');
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
const LATE: ReadonlyArray<Step['kind']> = ['drive', 'export', 'device', 'monitor', 'multiplexed'];

function machineFlags(options: RunOptions): Record<string, () => void> {
  const none = [...FLAGS_WITHOUT_EFFECT].map((name): [string, () => void] => [
    name,
    () => void options.flags.add(name),
  ]);
  const refused = [...UNSUPPORTED_OPTIONS].filter(([, form]) => form === 'flag');
  return {
    ...Object.fromEntries(none),
    ...Object.fromEntries(refused.map(([name]) => [name, () => refuse(name)])),
    // What it goes with is looked at first.
    '-preconfig': () => void options.flags.add('-preconfig'),
    '-S': () => void (options.startStopped = true),
    '-snapshot': () => void (options.isSnapshot = true),
    '-no-reboot': () => void (options.actions.reboot = 'shutdown'),
    '-no-shutdown': () => void (options.actions.shutdown = 'pause'),
  };
}

function refuse(name: string): never {
  throw new BlockError('unsupported', `${name}: not supported by livedisk`);
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
    if (ids.has(device.id)) throw new BlockError('exists', sameDevice(device.id, kind));
    ids.add(device.id);
    for (const one of devicesOf(device)) steps.push({ kind: 'chardev', device: one, text });
  };
  const common: Record<string, Take> = {
    '-blockdev': (value, text) => steps.push({ kind: 'blockdev', options: parseBlockdev(value), text }),
    '-nbd-server': (value, text) => steps.push({ kind: 'nbd-server', ...parseNbdServer(value), text }),
    '-export': (value, text) => {
      steps.push({ kind: 'export', options: parseExport(value), text });
    },
    '-chardev': (value, text) => {
      const help = characterDeviceHelp(value);
      if (help === undefined) addDevice(parseCharacterDevice(value, warnOf(options, text)), text);
      else options.asks ??= { text: help };
    },
    '-pidfile': (value) => void (options.pidFile = value),
    '-metrics': (value) => {
      options.metrics = parseMetrics(value);
      options.metricsText = value;
    },
    '-trace': (value, text) => takeTrace(options, value, text),
    '-state': (value) => void (options.state = resolve(value)),
    '-takeover': (value) => void (options.takeover = value),
    '-shared-bases-folder': (value) => void options.sharedBasesFolders.push(value),
    '-object': (value, text) => {
      const help = objectHelp(value, kind);
      if (help === undefined)
        steps.push({ kind: 'object', options: parseObject(value), text: kind === 'machine' ? '' : text });
      else options.asks ??= { text: help };
    },
  };
  const monitor: Take = (value, text) => {
    const asked = parseMonitor(value, kind);
    options.hasMonitor = true;
    steps.push({ kind: 'monitor', ...asked, text });
  };
  if (kind === 'storage-daemon')
    return { ...common, '-monitor': monitor, '-T': (value, text) => takeTrace(options, value, text) };
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
    '-msg': (value) => {
      VALUED_WITHOUT_EFFECT['-msg']?.(value);
      options.hasTimestamps = parseImageOpts(value, { warn: () => undefined }).get('timestamp') === 'on';
    },
    '-D': (value) => void (options.logFile = value),
    '-d': (value) => void (options.logItems = value),
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

function takeTrace(options: RunOptions, value: string, text: string): void {
  const help = traceHelp(value);
  if (help === undefined) options.traces.push({ options: parseTrace(value), text });
  else options.asks ??= { text: help };
}

/** Errors: invalid, in QEMU's words. */
function takeLog(options: RunOptions): void {
  const log = parseLog(options.logItems, options.logFile, process.pid);
  if ('text' in log) options.asks = log;
  else {
    options.logFile = log.file;
    options.traces.push(...log.traces.map((trace) => ({ options: trace, text: '' })));
  }
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

function warnOf({ warn }: RunOptions, text: string): (warning: string) => void {
  return (warning) => warn(`${text}: warning: ${warning}`);
}

function addDrive(options: RunOptions, value: string, text: string): void {
  const drive = parseDrive(value, warnOf(options, text));
  options.steps.push({ kind: 'drive', options: drive, text });
}

/** An image that is given by itself is the first hard disk. */
function addImage(options: RunOptions, filename: string): void {
  addDrive(options, `file=${filename.replaceAll(',', ',,')},index=0,media=disk`, filename);
}
