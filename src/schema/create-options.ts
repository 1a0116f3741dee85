import { BlockError } from '../base/error.js';
import { BlockdevRef, type DriverName, DRIVERS, OTHER_DRIVERS } from './blockdev-options.js';
import {
  bool,
  defaulted,
  enumOf,
  type FilledOf,
  int,
  later,
  type Members,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  union,
  withFlatForm,
} from './types.js';

/**
 * What may be said of a new image, format by format: QAPI's BlockdevCreateOptions (QEMU 7.2) without the members that
 * formats share. The drivers' descriptions refer to them.
 */

/** A bool of which livedisk does only false. */
const notYet: Type<boolean> = {
  ...bool,
  parse(value, path, mode) {
    if (!bool.parse(value, path, mode)) return false;
    throw new BlockError(
      'unsupported',
      `Value 'true' of parameter '${path}' is not supported by livedisk yet`,
    );
  },
};

const PREALLOCATION = enumOf('PreallocMode', ['off'], ['metadata', 'falloc', 'full']);
const QCOW2_PREALLOCATION = enumOf('PreallocMode', ['off', 'metadata', 'falloc', 'full']);
/** In a command line, the file's name. */
const DATA_FILE = withFlatForm<BlockdevRef>(BlockdevRef, (text) => text);

export const FILE_CREATE = {
  preallocation: defaulted(PREALLOCATION, 'off'),
  nocow: defaulted(notYet, false),
  'extent-size-hint': later(size),
} as const;

export const RAW_CREATE = { preallocation: defaulted(PREALLOCATION, 'off') } as const;

export const QCOW2_CREATE = {
  'data-file': optional(DATA_FILE),
  'data-file-raw': defaulted(bool, false),
  'extended-l2': defaulted(bool, false),
  version: defaulted(enumOf('BlockdevQcow2Version', ['v2', 'v3']), 'v3'),
  encrypt: later(struct('QCryptoBlockCreateOptions', {})),
  'cluster-size': defaulted(size, 65536),
  preallocation: defaulted(QCOW2_PREALLOCATION, 'off'),
  'lazy-refcounts': defaulted(bool, false),
  'refcount-bits': defaulted(int, 16),
  'compression-type': defaulted(enumOf('Qcow2CompressionType', ['zlib', 'zstd']), 'zlib'),
} as const;

export type CreateSettings<C extends Members> = FilledOf<C>;

/** One of the image tool's `-o` options. */
export interface ToolOption {
  readonly name: string;
  /** The creation option that it sets; without one it is known to QEMU and refused by name. */
  readonly member?: string;
  /** Other words for some values. */
  readonly aliases?: Readonly<Record<string, string>>;
  /** Printed also when it was not given, with its default. */
  readonly isAlwaysShown?: boolean;
}

export const DRIVER_NAMES = Object.keys(DRIVERS) as DriverName[];

/** Of the drivers whose new images QMP can ask for. */
export const BlockdevCreateOptions = union(
  'BlockdevCreateOptions',
  { driver: required(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)) },
  'driver',
  {
    file: struct('BlockdevCreateOptionsFile', {
      filename: required(str),
      size: required(size),
      ...FILE_CREATE,
    }),
    qcow2: struct('BlockdevCreateOptionsQcow2', {
      file: required(BlockdevRef),
      size: required(size),
      'backing-file': optional(str),
      'backing-fmt': optional(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)),
      ...QCOW2_CREATE,
    }),
  },
);
