import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  later,
  optional,
  required,
  size,
  str,
  struct,
  union,
} from './types.js';
import { BlockdevRef, DRIVERS, OTHER_DRIVERS } from './blockdev-options.js';

export * from './blockdev-options.js';
export * from './socket-address.js';

/** QAPI's block types (block-core.json, block-export.json of QEMU 7.2) as far as livedisk knows them. */

const DRIVER_NAMES = Object.keys(DRIVERS);

export const BlockExportOptions = union(
  'BlockExportOptions',
  {
    type: required(enumOf('BlockExportType', ['nbd'], ['vhost-user-blk', 'fuse', 'vduse-blk'])),
    id: required(str),
    'fixed-iothread': later(bool),
    iothread: later(str),
    'node-name': required(str),
    writable: optional(bool),
    writethrough: optional(bool),
  },
  'type',
  {
    nbd: struct('BlockExportOptionsNbd', {
      name: optional(str),
      description: optional(str),
      bitmaps: later(arrayOf(str)),
      'allocation-depth': later(bool),
    }),
  },
);
export type BlockExportOptions = Infer<typeof BlockExportOptions>;

export const BlockdevCreateOptions = union(
  'BlockdevCreateOptions',
  { driver: required(enumOf('BlockdevDriver', ['file', 'qcow2', 'raw'], OTHER_DRIVERS)) },
  'driver',
  {
    file: struct('BlockdevCreateOptionsFile', {
      filename: required(str),
      size: required(size),
      preallocation: later(str),
      nocow: later(bool),
      'extent-size-hint': later(size),
    }),
    qcow2: struct('BlockdevCreateOptionsQcow2', {
      file: required(BlockdevRef),
      'data-file': later(BlockdevRef),
      'data-file-raw': later(bool),
      'extended-l2': later(bool),
      size: required(size),
      version: optional(enumOf('BlockdevQcow2Version', ['v3'], ['v2'])),
      'backing-file': optional(str),
      'backing-fmt': optional(enumOf('BlockdevDriver', DRIVER_NAMES, OTHER_DRIVERS)),
      encrypt: later(struct('QCryptoBlockCreateOptions', {})),
      'cluster-size': optional(size),
      preallocation: later(str),
      'lazy-refcounts': later(bool),
      'refcount-bits': later(int),
      'compression-type': later(str),
    }),
    raw: struct('BlockdevCreateOptionsRaw', { file: required(BlockdevRef), size: required(size) }),
  },
);
