import { isPowerOfTwo } from '../../base/align.js';
import { BlockError } from '../../base/error.js';
import type { Json, NodeOptions } from '../../block/driver.js';
import { booleanOption, numberOption, stringOption } from '../../block/options.js';
import { Permission, permissionList, unitePermissions } from '../../block/permissions.js';
import { errnoName, EVENTS, type IoType, isIoType } from './events.js';

/** When `event` is announced in `state`, requests begin to fail that match the rest. */
export interface InjectRule {
  event: string;
  /** 0: in any state. */
  state: number;
  ioTypes: ReadonlySet<IoType>;
  errno: string;
  /** Only requests that touch this sector (512 bytes); -1 any. */
  sector: number;
  once: boolean;
  /** Fail before the request gives way to anything else. */
  immediately: boolean;
}

export interface StateRule {
  event: string;
  state: number;
  newState: number;
}

/** Announcements of `event`, or requests of `ioType`, wait. */
export interface DelayRule {
  event: string | undefined;
  ioType: IoType | undefined;
  delayMs: number;
}

export interface BlkdebugOptions {
  inject: InjectRule[];
  setState: StateRule[];
  delays: DelayRule[];
  alignBytes: number;
  /** Requests are passed on in pieces of at most this many bytes. */
  maxTransferBytes: number;
  maxWriteZeroBytes: number;
  maxDiscardBytes: number;
}

export const OPTION_KEYS = [
  'config',
  'align',
  'max-transfer',
  'opt-write-zero',
  'max-write-zero',
  'opt-discard',
  'max-discard',
  'inject-error',
  'set-state',
  'take-child-perms',
  'unshare-child-perms',
  'x-delay',
] as const;

const REFUSED = ['config', 'opt-write-zero', 'opt-discard'] as const;

/** A rule without an iotype means all but block-status. */
const DEFAULT_IO_TYPES: readonly IoType[] = ['read', 'write', 'write-zeroes', 'discard', 'flush'];

/** Errors: kind invalid in QEMU's words, unsupported by name. */
export function parseBlkdebugOptions(options: NodeOptions): BlkdebugOptions {
  for (const key of REFUSED) {
    if (options[key] !== undefined)
      throw new BlockError('unsupported', `blkdebug: option '${key}' is not supported by livedisk`);
  }
  const align = numberOption(options, 'align') ?? 0;
  if (align !== 0 && (!isPowerOfTwo(align) || align >= 2 ** 31)) throw constraint('align', align);
  const alignBytes = align === 0 ? 1 : align;
  const limit = (key: string): number => parseLimit(options, key, alignBytes);
  return {
    inject: list(options, 'inject-error').map(parseInject),
    setState: list(options, 'set-state').map(parseSetState),
    delays: list(options, 'x-delay').map(parseDelay),
    alignBytes,
    maxTransferBytes: limit('max-transfer'),
    maxWriteZeroBytes: limit('max-write-zero'),
    maxDiscardBytes: limit('max-discard'),
  };
}

/** Sum of the permissions that an option names. */
export function permissionsOption(options: NodeOptions, key: string): number {
  const value = options[key];
  const names = value === undefined ? [] : Array.isArray(value) ? value : [value];
  return names.map(permissionOf).reduce(unitePermissions, 0);
}

function permissionOf(name: Json): number {
  for (const permission of Object.values(Permission)) {
    if (permissionList(permission)[0] === name) return permission;
  }
  // What 'graph-mod' asked for no longer exists; it is still accepted.
  if (name === 'graph-mod') return 0;
  throw new BlockError('invalid', `invalid parameter value: ${String(name)}`);
}

function parseLimit(options: NodeOptions, key: string, alignBytes: number): number {
  const value = numberOption(options, key) ?? 0;
  if (value < 0 || !Number.isSafeInteger(value) || value % alignBytes !== 0) throw constraint(key, value);
  return value === 0 ? Infinity : value;
}

function constraint(key: string, value: number): BlockError {
  return new BlockError('invalid', `Cannot meet constraints with ${key} ${value}`);
}

/** The members of a list option, which must be objects. */
function list(options: NodeOptions, key: string): NodeOptions[] {
  const value = options[key];
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw new BlockError('invalid', `Invalid parameter type for '${key}'`);
  return value.map((item) => {
    if (typeof item !== 'object' || item === null || Array.isArray(item))
      throw new BlockError('invalid', `Invalid parameter type for '${key}'`);
    return item;
  });
}

function parseInject(rule: NodeOptions): InjectRule {
  const known = ['event', 'state', 'iotype', 'errno', 'sector', 'once', 'immediately'];
  checkMembers(rule, 'inject-error', known);
  const ioType = ioTypeMember(rule);
  return {
    event: eventMember(rule),
    state: numberOption(rule, 'state') ?? 0,
    ioTypes: new Set(ioType === undefined ? DEFAULT_IO_TYPES : [ioType]),
    errno: errnoName(numberOption(rule, 'errno') ?? 5),
    sector: numberOption(rule, 'sector') ?? -1,
    once: booleanOption(rule, 'once') ?? false,
    immediately: booleanOption(rule, 'immediately') ?? false,
  };
}

function parseSetState(rule: NodeOptions): StateRule {
  checkMembers(rule, 'set-state', ['event', 'state', 'new_state']);
  const newState = numberOption(rule, 'new_state');
  if (newState === undefined) throw new BlockError('invalid', "Parameter 'new_state' is missing");
  return { event: eventMember(rule), state: numberOption(rule, 'state') ?? 0, newState };
}

function parseDelay(rule: NodeOptions): DelayRule {
  checkMembers(rule, 'x-delay', ['event', 'iotype', 'delay-ms']);
  const delayMs = numberOption(rule, 'delay-ms');
  if (delayMs === undefined) throw new BlockError('invalid', "Parameter 'delay-ms' is missing");
  if (delayMs < 0) throw new BlockError('invalid', "Parameter 'delay-ms' expects a non-negative number");
  const event = rule['event'] === undefined ? undefined : eventMember(rule);
  const ioType = ioTypeMember(rule);
  if ((event === undefined) === (ioType === undefined))
    throw new BlockError('invalid', "A rule of 'x-delay' needs either 'event' or 'iotype'");
  return { event, ioType, delayMs };
}

function checkMembers(rule: NodeOptions, option: string, known: readonly string[]): void {
  for (const key of Object.keys(rule)) {
    if (!known.includes(key)) throw new BlockError('invalid', `Parameter '${option}.${key}' is unexpected`);
  }
}

function eventMember(rule: NodeOptions): string {
  const event = stringOption(rule, 'event');
  if (event === undefined) throw new BlockError('invalid', 'Missing event name for rule');
  if (!EVENTS.has(event)) throw new BlockError('invalid', `invalid parameter value: ${event}`);
  return event;
}

function ioTypeMember(rule: NodeOptions): IoType | undefined {
  const ioType = stringOption(rule, 'iotype');
  if (ioType === undefined || isIoType(ioType)) return ioType;
  throw new BlockError('invalid', `invalid parameter value: ${ioType}`);
}
