/** Numbers of the NBD protocol (https://github.com/NetworkBlockDevice/nbd, doc/proto.md). */

/** "NBDMAGIC" and "IHAVEOPT" as hi/lo words. */
export const MAGIC_HIGH = 0x4e42444d;
export const MAGIC_LOW = 0x41474943;
export const OPTION_MAGIC_HIGH = 0x49484156;
export const OPTION_MAGIC_LOW = 0x454f5054;
/** In place of "IHAVEOPT": a server of before the newstyle handshake. */
export const OLDSTYLE_MAGIC_HIGH = 0x00004202;
export const OLDSTYLE_MAGIC_LOW = 0x81861253;
export const OPTION_REPLY_MAGIC_HIGH = 0x0003e889;
export const OPTION_REPLY_MAGIC_LOW = 0x045565a9;
export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_REPLY_BYTES = 20;
export const EXTENDED_REQUEST_BYTES = 32;
export const EXTENDED_REPLY_BYTES = 32;
export const OPTION_REQUEST_BYTES = 16;
export const OPTION_REPLY_BYTES = 20;
export const GREETING_BYTES = 18;

/** Both the server's and the client's handshake flags. */
export const HandshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const TransmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
  blockStatusPayload: 1 << 12,
} as const;

export const Option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

export const OptionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsup: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsRequired: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeRequired: 0x80000008,
  errTooBig: 0x80000009,
  errExtendedHeadersRequired: 0x8000000a,
} as const;

export const Info = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const Command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export const CommandFlag = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16, payloadLength: 32 } as const;

export const ReplyType = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  blockStatusExtended: 6,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

export const REPLY_FLAG_DONE = 1;

/** Bits of a base:allocation extent. */
export const AllocationState = { hole: 1, zero: 2 } as const;

/** Metadata contexts: the protocol's own, and QEMU's. */
export const BASE_ALLOCATION = 'base:allocation';
export const ALLOCATION_DEPTH = 'qemu:allocation-depth';
export const DIRTY_BITMAP_PREFIX = 'qemu:dirty-bitmap:';

/** Error numbers on the wire, whatever the machine's errno values are. */
export const NbdError = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

export const NBD_DEFAULT_PORT = 10809;

/** Largest option that is read: two strings of MAX_NBD_STRING_BYTES and a few hundred queries fit. */
export const MAX_OPTION_BYTES = 64 * 1024;
/** Contexts that one export may have, and a client ask for. */
export const MAX_CONTEXTS = 1024;
/** Extents of one BLOCK_STATUS reply; a client asks on from where it ends. */
export const MAX_STATUS_EXTENTS = 8192;
/** Payload of the largest error chunk: code, length, message. */
export const MAX_ERROR_BYTES = 4 + 2 + 65535 + 8;
