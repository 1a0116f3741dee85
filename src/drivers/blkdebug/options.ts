import { isPowerOfTwo } from '../../base/align.js';
import { defined } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import type { Settings } from '../../block/driver.js';
import { Permission, permissionList, unitePermissions } from '../../block/permissions.js';
import type { BLKDEBUG_OPTIONS, InjectErrorRule } from '../../schema/blockdev-options.js';
import type { ConfiguredRules } from './config.js';
import { errnoName, type IoType } from './events.js';

export type BlkdebugSettings = Settings<typeof BLKDEBUG_OPTIONS>;

/** When `event` is announced in `state`, requests begin to fail that match the rest. */
export interface InjectRule {
  event: string;
  /** 0: in any state. */
  state: number;
  ioTypes: ReadonlySet<IoType>;
  /** undefined: the request does not fail, by this rule or another. */
  errno: string | undefined;
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
  /** What is not aligned to them is written as bytes, and discarded in requests of its own. */
  writeZeroAlignBytes: number;
  discardAlignBytes: number;
}

/** A rule without an iotype means all but block-status. */
const DEFAULT_IO_TYPES: readonly IoType[] = ['read', 'write', 'write-zeroes', 'discard', 'flush'];

/** Those of a rules file come first. Errors: kind invalid in QEMU's words, unsupported by name. */
export function blkdebugOptions(settings: BlkdebugSettings, file: ConfiguredRules): BlkdebugOptions {
  const { align } = settings;
  if (align !== 0 && (!isPowerOfTwo(align) || align >= 2 ** 31)) throw constraint('align', align);
  const alignBytes = align === 0 ? 1 : align;
  const limit = (key: LimitKey, unitBytes = alignBytes): number => limitOf(key, settings[key], unitBytes);
  const preferred = (key: LimitKey): number => Math.max(alignBytes, settings[key] && limit(key));
  const maxTransferBytes = limit('max-transfer') || Infinity;
  const writeZeroAlignBytes = preferred('opt-write-zero');
  const maxWriteZeroBytes = limit('max-write-zero', writeZeroAlignBytes) || Infinity;
  const discardAlignBytes = preferred('opt-discard');
  const maxDiscardBytes = limit('max-discard', discardAlignBytes) || Infinity;
  return {
    inject: [...file.inject, ...settings['inject-error']].map(injectRule),
    setState: [...file.setState, ...settings['set-state']].map(({ new_state: newState, ...rule }) => ({
      ...rule,
      newState,
    })),
    delays: settings['x-delay'].map(delayRule),
    alignBytes,
    maxTransferBytes,
    maxWriteZeroBytes,
    maxDiscardBytes,
    writeZeroAlignBytes,
    discardAlignBytes,
  };
}

/** Sum of the permissions that an option names. */
export function permissionsOf(names: BlkdebugSettings['take-child-perms']): number {
  return names.map(permissionOf).reduce(unitePermissions, 0);
}

function permissionOf(name: string): number {
  const found = Object.values(Permission).find((permission) => permissionList(permission)[0] === name);
  return defined(found, `permission ${name}`);
}

type LimitKey = 'max-transfer' | 'max-write-zero' | 'max-discard' | 'opt-write-zero' | 'opt-discard';

/** 0: none. */
function limitOf(key: LimitKey, value: number, unitBytes: number): number {
  if (value >= 2 ** 31 || value % unitBytes !== 0) throw constraint(key, value);
  return value;
}

function constraint(key: string, value: number): BlockError {
  return new BlockError('invalid', `Cannot meet constraints with ${key} ${value}`);
}

function injectRule(rule: InjectErrorRule): InjectRule {
  const { iotype: ioType, errno, ...rest } = rule;
  const ioTypes = new Set(ioType === undefined ? DEFAULT_IO_TYPES : [ioType]);
  return { ...rest, ioTypes, errno: errno === 0 ? undefined : errnoName(errno) };
}

function delayRule(rule: BlkdebugSettings['x-delay'][number]): DelayRule {
  const { event, iotype: ioType, 'delay-ms': delayMs } = rule;
  if (delayMs < 0) throw new BlockError('invalid', "Parameter 'delay-ms' expects a non-negative number");
  if ((event === undefined) === (ioType === undefined))
    throw new BlockError('invalid', "A rule of 'x-delay' needs either 'event' or 'iotype'");
  return { event, ioType, delayMs };
}
