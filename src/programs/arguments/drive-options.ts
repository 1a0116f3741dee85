import { BlockError } from '../../base/error.js';
import { DRIVE_INTERFACES, type DriveInterface } from '../../attach/drive.js';
import type { ErrorAction } from '../../attach/device.js';
import type { DetectZeroesMode } from '../../block/modes.js';
import type { FlatOptions } from '../../schema/flat.js';
import { THROTTLE_LIMITS, type ThrottleLimits } from '../../schema/objects.js';
import { takeIntervals } from './drive-accounting.js';
import { parseImageOpts } from './image-opts.js';

/** What -drive says: where the drive sits, how its device works, and which image it has. */
export interface DriveOptions {
  id: string | undefined;
  interface: DriveInterface | undefined;
  bus: number | undefined;
  unit: number | undefined;
  index: number | undefined;
  isCdrom: boolean;
  /** undefined: as all drives are. */
  isSnapshot: boolean | undefined;
  isReadOnly: boolean;
  writethrough: boolean;
  readErrors: ErrorAction;
  writeErrors: ErrorAction;
  copyOnRead: boolean;
  filename: string | undefined;
  /** Of the file, whatever the format is. */
  aio: string | undefined;
  /** Of the topmost node. Without discard=unmap, `unmap` is `on`. */
  detectZeroes: DetectZeroesMode;
  throttling: { limits: ThrottleLimits; group: string | undefined };
  /** What of its requests counts, and over which times they are told; lengths as given, see checkedIntervals. */
  accounting: { accountsInvalid: boolean; accountsFailed: boolean; intervals: string[] };
  /** What is left: options of the image, and of what is below it. */
  image: FlatOptions;
}

/** What -drive calls otherwise than the options of an image do. */
const RENAMED: ReadonlyArray<readonly [old: string, name: string]> = [
  ['iops', 'throttling.iops-total'],
  ['iops_rd', 'throttling.iops-read'],
  ['iops_wr', 'throttling.iops-write'],
  ['bps', 'throttling.bps-total'],
  ['bps_rd', 'throttling.bps-read'],
  ['bps_wr', 'throttling.bps-write'],
  ['iops_max', 'throttling.iops-total-max'],
  ['iops_rd_max', 'throttling.iops-read-max'],
  ['iops_wr_max', 'throttling.iops-write-max'],
  ['bps_max', 'throttling.bps-total-max'],
  ['bps_rd_max', 'throttling.bps-read-max'],
  ['bps_wr_max', 'throttling.bps-write-max'],
  ['iops_size', 'throttling.iops-size'],
  ['group', 'throttling.group'],
  ['readonly', 'read-only'],
];

/** direct, no-flush, writethrough. */
const CACHES: { readonly [name: string]: readonly [boolean, boolean, boolean] } = {
  none: [true, false, false],
  off: [true, false, false],
  directsync: [true, false, true],
  writeback: [false, false, false],
  unsafe: [false, true, false],
  writethrough: [false, false, true],
};

/** A -drive, or what drive_add takes. Errors: invalid, in QEMU's words. */
export function parseDrive(text: string, warn: (text: string) => void): DriveOptions {
  const given = parseImageOpts(text, { warn });
  return driveOptions(given, warn);
}

function driveOptions(given: FlatOptions, warn: (text: string) => void): DriveOptions {
  const image = given.copy();
  rename(image);
  const accounting = takeAccounting(image);
  const writethrough = takeCache(image);
  const media = takeText(image, 'media');
  if (media !== undefined && media !== 'disk' && media !== 'cdrom')
    throw new BlockError('invalid', `'${media}' invalid media`);
  const isReadOnly = takeFlag(image, 'read-only') ?? false;
  const options: DriveOptions = {
    id: takeText(image, 'id'),
    interface: takeInterface(image),
    bus: takeNumber(image, 'bus'),
    unit: takeNumber(image, 'unit'),
    index: takeNumber(image, 'index'),
    isCdrom: media === 'cdrom',
    isSnapshot: takeFlag(image, 'snapshot'),
    isReadOnly: isReadOnly || media === 'cdrom',
    writethrough,
    writeErrors: takeAction(image, 'werror', 'enospc'),
    readErrors: takeAction(image, 'rerror', 'report'),
    copyOnRead: takeFlag(image, 'copy-on-read') ?? false,
    filename: takeText(image, 'file') || undefined,
    aio: takeAio(image),
    detectZeroes: takeDetectZeroes(image),
    throttling: takeThrottling(image),
    accounting,
    image,
  };
  takeFormat(image);
  if (options.copyOnRead && options.isReadOnly) {
    warn('disabling copy-on-read on read-only drive');
    options.copyOnRead = false;
  }
  checkPlace(options, given);
  return options;
}

function rename(options: FlatOptions): void {
  for (const [old, name] of RENAMED) {
    const value = options.get(old);
    if (value === undefined) continue;
    if (options.has(name))
      throw new BlockError('invalid', `'${name}' and its alias '${old}' can't be used at the same time`);
    options.take(old);
    options.put(name, value);
  }
}

function takeText(options: FlatOptions, key: string): string | undefined {
  const value = options.take(key);
  return typeof value === 'string' ? value : undefined;
}

function takeFlag(options: FlatOptions, key: string): boolean | undefined {
  const text = takeText(options, key);
  if (text === undefined) return undefined;
  if (['on', 'yes', 'true', 'y'].includes(text)) return true;
  if (['off', 'no', 'false', 'n'].includes(text)) return false;
  throw new BlockError('invalid', `Parameter '${key}' expects 'on' or 'off'`);
}

function takeNumber(options: FlatOptions, key: string): number | undefined {
  const text = takeText(options, key);
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  throw notANumber(key);
}

function notANumber(key: string): BlockError {
  return new BlockError('invalid', `Parameter '${key}' expects a number`);
}

function takeThrottling(options: FlatOptions): DriveOptions['throttling'] {
  const limits: { [name: string]: number } = {};
  for (const name of THROTTLE_LIMITS) {
    const key = `throttling.${name}`;
    const text = takeText(options, key);
    if (text === undefined) continue;
    if (!/^-?\d+$/.test(text)) throw notANumber(key);
    limits[name] = Number(text);
  }
  return { limits, group: takeText(options, 'throttling.group') };
}

function takeAccounting(options: FlatOptions): DriveOptions['accounting'] {
  return {
    accountsInvalid: takeFlag(options, 'stats-account-invalid') ?? true,
    accountsFailed: takeFlag(options, 'stats-account-failed') ?? true,
    intervals: takeIntervals(options),
  };
}

/** `cache=` stands for three options, of which those that are given by themselves count. */
function takeCache(options: FlatOptions): boolean {
  const name = takeText(options, 'cache');
  const cache =
    name === undefined ? CACHES['writeback'] : Object.hasOwn(CACHES, name) ? CACHES[name] : undefined;
  if (!cache) throw new BlockError('invalid', 'invalid cache option');
  const [direct, noFlush, writethrough] = cache;
  if (!options.has('cache.direct')) options.put('cache.direct', direct ? 'on' : 'off');
  if (!options.has('cache.no-flush')) options.put('cache.no-flush', noFlush ? 'on' : 'off');
  const writeback = takeFlag(options, 'cache.writeback');
  return writeback === undefined ? writethrough : !writeback;
}

function takeInterface(options: FlatOptions): DriveInterface | undefined {
  const text = takeText(options, 'if');
  const found = DRIVE_INTERFACES.find((name) => name === text);
  if (text !== undefined && found === undefined)
    throw new BlockError('invalid', `unsupported bus type '${text}'`);
  return found;
}

function takeAction(options: FlatOptions, key: 'rerror' | 'werror', usual: ErrorAction): ErrorAction {
  const text = takeText(options, key);
  if (text === undefined) return usual;
  if (text === 'ignore' || text === 'report' || text === 'stop') return text;
  if (text === 'enospc' && key === 'werror') return text;
  throw new BlockError('invalid', `'${text}' invalid ${key === 'werror' ? 'write' : 'read'} error action`);
}

/** `format=` is the image's driver. */
function takeFormat(options: FlatOptions): void {
  const format = takeText(options, 'format');
  if (format === undefined) return;
  if (options.has('driver')) throw new BlockError('invalid', "Cannot specify both 'driver' and 'format'");
  options.put('driver', format);
}

function takeAio(options: FlatOptions): string | undefined {
  const aio = takeText(options, 'aio');
  if (aio === undefined || ['threads', 'native', 'io_uring'].includes(aio)) return aio;
  throw new BlockError('invalid', 'invalid aio option');
}

function takeDetectZeroes(options: FlatOptions): DetectZeroesMode {
  const mode = takeText(options, 'detect-zeroes') ?? 'off';
  if (mode === 'off' || mode === 'on' || mode === 'unmap') return mode;
  throw new BlockError('invalid', `invalid parameter value: ${mode}`);
}

/** What a floppy's controller does with errors is its own matter. */
function checkPlace(options: DriveOptions, given: FlatOptions): void {
  const { interface: kind, bus, unit, index } = options;
  if (index !== undefined && (bus !== undefined || unit !== undefined))
    throw new BlockError('invalid', 'index cannot be used with bus and unit');
  const isPolite = kind === undefined || ['ide', 'scsi', 'virtio', 'none'].includes(kind);
  for (const key of ['werror', 'rerror'])
    if (!isPolite && given.has(key))
      throw new BlockError('invalid', `${key} is not supported by this bus type`);
}
