import { BlockdevRef, type DriverName, DRIVERS, OTHER_DRIVERS, SSH_OPTIONS } from './blockdev-options.js';
import { BlockEncryption, LUKS_CREATE_MEMBERS } from './encryption-options.js';
import {
  any,
  arrayOf,
  bool,
  defaulted,
  enumOf,
  type FilledOf,
  exactSize,
  int,
  later,
  type Members,
  optional,
  required,
  size,
  str,
  struct,
  union,
  withFlatForm,
} from './types.js';

/**
 * What may be said of a new image, format by format: QAPI's BlockdevCreateOptions (QEMU 7.2) without the members that
 * formats share. The drivers' descriptions refer to them.
 */

const PREALLOCATION = enumOf('PreallocMode', ['off', 'metadata', 'falloc', 'full']);
/** In a command line, the file's name. */
const DATA_FILE = withFlatForm<BlockdevRef>(BlockdevRef, (text) => text);

export const FILE_CREATE = {
  preallocation: defaulted(PREALLOCATION, 'off'),
  nocow: defaulted(bool, false),
  'extent-size-hint': later(size),
} as const;

export const RAW_CREATE = { preallocation: defaulted(PREALLOCATION, 'off') } as const;

export const QCOW2_CREATE = {
  'data-file': optional(DATA_FILE),
  'data-file-raw': defaulted(bool, false),
  'extended-l2': defaulted(bool, false),
  version: defaulted(enumOf('BlockdevQcow2Version', ['v2', 'v3']), 'v3'),
  encrypt: optional(BlockEncryption),
  'cluster-size': defaulted(size, 65536),
  preallocation: defaulted(PREALLOCATION, 'off'),
  'lazy-refcounts': defaulted(bool, false),
  'refcount-bits': defaulted(int, 16),
  'compression-type': defaulted(enumOf('Qcow2CompressionType', ['zlib', 'zstd']), 'zlib'),
} as const;

export const LUKS_CREATE = {
  ...LUKS_CREATE_MEMBERS,
  preallocation: defaulted(PREALLOCATION, 'off'),
} as const;

/** The image tool's too: the file gets header and key slots alone. */
export const LUKS_TOOL_CREATE = { ...LUKS_CREATE, 'detached-header': defaulted(bool, false) } as const;

export const PARALLELS_CREATE = { 'cluster-size': defaulted(size, 2 ** 20) } as const;

export const QED_CREATE = {
  'cluster-size': defaulted(size, 65536),
  'table-size': defaulted(int, 4),
} as const;

export const VDI_CREATE = {
  preallocation: defaulted(PREALLOCATION, 'off'),
} as const;

export const VHDX_CREATE = {
  'log-size': defaulted(size, 2 ** 20),
  'block-size': defaulted(size, 0),
  subformat: defaulted(enumOf('BlockdevVhdxSubformat', ['dynamic', 'fixed']), 'dynamic'),
  'block-state-zero': defaulted(bool, true),
} as const;

export const VMDK_CREATE = {
  subformat: defaulted(
    enumOf('BlockdevVmdkSubformat', [
      'monolithicSparse',
      'monolithicFlat',
      'twoGbMaxExtentSparse',
      'twoGbMaxExtentFlat',
      'streamOptimized',
    ]),
    'monolithicSparse',
  ),
  'adapter-type': defaulted(
    enumOf('BlockdevVmdkAdapterType', ['ide', 'buslogic', 'lsilogic', 'legacyESX']),
    'ide',
  ),
  hwversion: optional(str),
  toolsversion: optional(str),
  'zeroed-grain': defaulted(bool, false),
} as const;

/** The image tool's too: a hardware version by another name. */
export const VMDK_TOOL_CREATE = { ...VMDK_CREATE, compat6: defaulted(bool, false) } as const;

export const VPC_CREATE = {
  subformat: defaulted(enumOf('BlockdevVpcSubformat', ['dynamic', 'fixed']), 'dynamic'),
  'force-size': defaulted(bool, false),
} as const;

export type CreateSettings<C extends Members> = FilledOf<C>;

/** One of the image tool's `-o` options. */
export interface ToolOption {
  readonly name: string;
  /** The creation option that it sets; without one it is known to QEMU and refused by name. */
  readonly member?: string;
  /** It is a switch: the values of the member that on and off stand for. */
  readonly switches?: readonly [on: string, off: string];
  /** Other words for some values. */
  readonly aliases?: Readonly<Record<string, string>>;
  /** A wrong value is refused without the option's name. */
  readonly hasNamelessErrors?: boolean;
  /** Printed also when it was not given, with its default. */
  readonly isAlwaysShown?: boolean;
  /** What is printed then, where the option has no default. */
  readonly shownAs?: string;
  /** Of a later QEMU: not in the help. */
  readonly isLater?: boolean;
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
      size: required(exactSize),
      ...FILE_CREATE,
    }),
    qcow2: struct('BlockdevCreateOptionsQcow2', {
      file: required(BlockdevRef),
      size: required(exactSize),
      'backing-file': optional(str),
      'backing-fmt': optional(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)),
      ...QCOW2_CREATE,
    }),
    luks: struct('BlockdevCreateOptionsLUKS', {
      file: optional(BlockdevRef),
      /** QEMU 9.0's: header and key slots go there. */
      header: optional(BlockdevRef),
      size: required(exactSize),
      ...LUKS_CREATE,
    }),
    parallels: struct('BlockdevCreateOptionsParallels', {
      file: required(BlockdevRef),
      size: required(exactSize),
      ...PARALLELS_CREATE,
    }),
    qed: struct('BlockdevCreateOptionsQed', {
      file: required(BlockdevRef),
      size: required(exactSize),
      'backing-file': optional(str),
      'backing-fmt': optional(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)),
      ...QED_CREATE,
    }),
    ssh: struct('BlockdevCreateOptionsSsh', {
      location: required(struct('BlockdevOptionsSsh', SSH_OPTIONS.members)),
      size: required(exactSize),
    }),
    vdi: struct('BlockdevCreateOptionsVdi', {
      file: required(BlockdevRef),
      size: required(exactSize),
      ...VDI_CREATE,
    }),
    vhdx: struct('BlockdevCreateOptionsVhdx', {
      file: required(BlockdevRef),
      size: required(exactSize),
      ...VHDX_CREATE,
    }),
    vmdk: struct('BlockdevCreateOptionsVmdk', {
      file: required(BlockdevRef),
      size: required(exactSize),
      extents: later(arrayOf(any)),
      'backing-file': optional(str),
      ...VMDK_CREATE,
    }),
    vpc: struct('BlockdevCreateOptionsVpc', {
      file: required(BlockdevRef),
      size: required(exactSize),
      ...VPC_CREATE,
    }),
  },
);
