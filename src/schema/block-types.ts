import {
  alternate,
  arrayOf,
  bool,
  enumOf,
  type Infer,
  optional,
  required,
  size,
  str,
  struct,
  uint16,
  union,
} from './types.js';

import { SocketAddress } from './socket-address.js';
import { BitmapName } from './bitmap-commands.js';

export * from './blockdev-options.js';
export * from './create-options.js';
export * from './socket-address.js';

/** QAPI's block types (block-core.json, block-export.json of QEMU 7.2) as far as livedisk knows them. */

const BitmapOrStr = alternate('BlockDirtyBitmapOrStr', [str, BitmapName]);

export const BlockExportOptions = union(
  'BlockExportOptions',
  {
    type: required(enumOf('BlockExportType', ['nbd', 'vhost-user-blk'], ['fuse', 'vduse-blk'])),
    id: required(str),
    'fixed-iothread': optional(bool),
    iothread: optional(str),
    'node-name': required(str),
    writable: optional(bool),
    writethrough: optional(bool),
  },
  'type',
  {
    nbd: struct('BlockExportOptionsNbd', {
      name: optional(str),
      description: optional(str),
      bitmaps: optional(arrayOf(BitmapOrStr)),
      'allocation-depth': optional(bool),
    }),
    'vhost-user-blk': struct('BlockExportOptionsVhostUserBlk', {
      addr: required(SocketAddress),
      'logical-block-size': optional(size),
      'num-queues': optional(uint16),
    }),
  },
);
export type BlockExportOptions = Infer<typeof BlockExportOptions>;
