import { deviceModel } from '../../attach/device-models.js';
import { BlockError } from '../../base/error.js';
import { split } from '../arguments/image-opts.js';
import { isTraceItem } from '../arguments/log.js';
import {
  FLAGS_WITHOUT_EFFECT,
  machineType,
  UNSUPPORTED_OPTIONS,
  VALUED_WITHOUT_EFFECT,
} from '../run/machine-options.js';

/** A command line of a machine, in two: for livedisk, which is its disks, and for the program that runs the guest. */
export interface SplitLine {
  ours: string[];
  /** The other program's, in their order; a number stands for our disk of that many devices before it. */
  theirs: Array<readonly string[] | { readonly device: number }>;
  /** How many devices are ours, or of both. */
  devices: number;
  /** How it runs the guest is said. */
  hasAccelerator: boolean;
  /** What is said of its memory: nothing; all of it is shared between processes; something else. */
  memory: 'default' | 'shared' | 'private';
  isPreallocated: boolean;
}

interface Option {
  /** With one dash. */
  readonly name: string;
  readonly words: readonly string[];
  /** '' where it takes none. */
  readonly value: string;
}

type Side = 'ours' | 'theirs' | 'both';

const FLAGS = new Set([
  ...FLAGS_WITHOUT_EFFECT,
  ...[...UNSUPPORTED_OPTIONS].filter(([, form]) => form === 'flag').map(([name]) => name),
  ...'-h -help -version -V -S -snapshot -no-reboot -no-shutdown -daemonize -protect-shared-bases'.split(' '),
]);

/** What both are told. */
const BOTH = new Set('-M -machine -m -name -uuid -no-reboot -no-shutdown -action -msg'.split(' '));

/** What is logged, and where. */
const LOG = new Set(['-d', '-D']);

/** Objects that disks use, and others may. */
const SHARED_OBJECTS = /^(secret|secret_keyring|tls-creds-.*|tls-cipher-suites|authz-.*|iothread)$/;
const OUR_OBJECTS = /^(throttle-group|x-.*)$/;

/** The terminal is the guest's console; Ctrl-A X ends the machine. */
const CONSOLE = [
  ...['-chardev', 'stdio,id=livedisk.console,mux=on,signal=off'],
  ...['-serial', 'chardev:livedisk.console'],
];

/** Errors: unsupported, invalid. */
export function splitCommandLine(args: readonly string[]): SplitLine {
  const options = readOptions(args);
  const monitors = new Set(
    options.filter(({ name }) => name === '-mon').map(({ value }) => field(value, 'chardev', 'chardev')),
  );
  const line: SplitLine = {
    ...{ ours: [], theirs: [], devices: 0, hasAccelerator: false, memory: 'default', isPreallocated: false },
  };
  const logSide = sideOfLog(options.findLast(({ name }) => name === '-d')?.value);
  const hasSerial = options.some(({ name }) => name === '-serial');
  for (const option of options) {
    const side = LOG.has(option.name) ? logSide : sideOf(option, monitors);
    if (side !== 'theirs') line.ours.push(...option.words);
    if (side !== 'ours') line.theirs.push(wordsFor(option, hasSerial));
    else if (option.name === '-device') line.theirs.push({ device: line.devices });
    if (option.name === '-device' && side !== 'theirs') line.devices++;
    note(line, option);
  }
  return line;
}

function readOptions(args: readonly string[]): Option[] {
  const options: Option[] = [];
  for (let i = 0; i < args.length; i++) {
    const given = args[i] ?? '';
    const name = given.replace(/^--/, '-');
    if (!given.startsWith('-') || FLAGS.has(name)) {
      options.push({ name: given.startsWith('-') ? name : '', words: [given], value: given });
      continue;
    }
    const value = args[++i];
    if (value === undefined) throw new BlockError('invalid', `${given}: requires an argument`);
    options.push({ name, words: [given, value], value });
  }
  return options;
}

/** Trace points are ours, as with -trace; all else is of the guest. Errors: unsupported for both, which would share a file. */
function sideOfLog(items: string | undefined): Side {
  const parts = items?.split(',') ?? [];
  const traces = parts.filter(isTraceItem);
  if (traces.length > 0 && traces.length < parts.length)
    throw new BlockError(
      'unsupported',
      `-d ${items}: not supported by livedisk: use -trace for trace points`,
    );
  return traces.length === parts.length ? 'ours' : 'theirs';
}

function sideOf({ name, value }: Option, monitors: ReadonlySet<string | undefined>): Side {
  if (BOTH.has(name)) return 'both';
  switch (name) {
    case '-serial':
    case '-parallel':
    case '-pflash':
      return 'theirs';
    case '-drive':
      return field(value, 'if') === 'pflash' ? 'theirs' : 'ours';
    case '-chardev':
      return monitors.has(field(value, 'id')) ? 'ours' : 'theirs';
    case '-object':
      return sideOfObject(field(value, 'qom-type', 'qom-type') ?? '');
    case '-device':
      return sideOfDevice(field(value, 'driver', 'driver') ?? '');
    default:
      return FLAGS_WITHOUT_EFFECT.has(name) || Object.hasOwn(VALUED_WITHOUT_EFFECT, name) ? 'theirs' : 'ours';
  }
}

export function sideOfObject(type: string): Side {
  if (OUR_OBJECTS.test(type)) return 'ours';
  return SHARED_OBJECTS.test(type) ? 'both' : 'theirs';
}

/** Disks are ours; both know of what has buses for them. */
export function sideOfDevice(driver: string): Side {
  if (/^vhost-user-blk/.test(driver)) return 'theirs';
  if (driver === '' || /^(help|\?)$/.test(driver)) return 'ours';
  let model;
  try {
    model = deviceModel(driver);
  } catch {
    // A newer QEMU has more of them.
    return 'theirs';
  }
  if (model.disk) return 'ours';
  return model.brings.length > 0 ? 'both' : 'theirs';
}

function wordsFor({ name, words, value }: Option, hasSerial: boolean): readonly string[] {
  if (name === '-nographic') return hasSerial ? words : [...words, ...CONSOLE];
  return name === '-serial' && value === 'mon:stdio' ? CONSOLE : words;
}

function note(line: SplitLine, { name, value }: Option): void {
  if (name === '-accel' || name === '-enable-kvm') line.hasAccelerator = true;
  if (/^-(M|machine)$/.test(name)) {
    if (field(value, 'accel') !== undefined) line.hasAccelerator = true;
    if (field(value, 'memory-backend') !== undefined && line.memory === 'default') line.memory = 'shared';
    // Asked for its errors.
    machineType(value);
  }
  if (name === '-numa' && field(value, 'memdev') !== undefined && line.memory === 'default')
    line.memory = 'shared';
  if (name === '-mem-path') line.memory = 'private';
  if (name === '-mem-prealloc') line.isPreallocated = true;
  const type = name === '-object' ? (field(value, 'qom-type', 'qom-type') ?? '') : '';
  if (type.startsWith('memory-backend') && !/^(on|yes|true|y)$/.test(field(value, 'share') ?? 'off'))
    line.memory = 'private';
}

/** One of the members of an option's value, keyval or JSON. */
function field(value: string, key: string, impliedKey?: string): string | undefined {
  if (value.startsWith('{')) {
    const parsed = attempt(() => JSON.parse(value) as unknown);
    const member = (parsed as { [key: string]: unknown } | undefined)?.[key];
    return typeof member === 'string'
      ? member
      : typeof member === 'boolean'
        ? member
          ? 'on'
          : 'off'
        : undefined;
  }
  return [...split(value, impliedKey)].findLast((parameter) => parameter.key === key)?.value;
}

/** What is wrong with it is told by whose it is. */
function attempt<T>(body: () => T): T | undefined {
  try {
    return body();
  } catch {
    return undefined;
  }
}
