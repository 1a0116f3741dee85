/** The vhost-user protocol ("Vhost-user Protocol" of QEMU's documentation) and virtio's block device (virtio 1.2, 5.2). */

/** What a front-end asks. */
export const Request = {
  getFeatures: 1,
  setFeatures: 2,
  setOwner: 3,
  resetOwner: 4,
  setMemTable: 5,
  setLogBase: 6,
  setLogFd: 7,
  setVringNum: 8,
  setVringAddr: 9,
  setVringBase: 10,
  getVringBase: 11,
  setVringKick: 12,
  setVringCall: 13,
  setVringErr: 14,
  getProtocolFeatures: 15,
  setProtocolFeatures: 16,
  getQueueNum: 17,
  setVringEnable: 18,
  setBackendReqFd: 21,
  getConfig: 24,
  setConfig: 25,
  getInflightFd: 31,
  setInflightFd: 32,
  getMaxMemSlots: 36,
  addMemReg: 37,
  remMemReg: 38,
} as const;

/** Those that are answered in any case. */
export const HAS_REPLY: ReadonlySet<number> = new Set<number>([
  Request.getFeatures,
  Request.getProtocolFeatures,
  Request.getQueueNum,
  Request.getConfig,
  Request.getVringBase,
  Request.getMaxMemSlots,
  Request.setLogBase,
  Request.getInflightFd,
]);

/** What a back-end asks on its own channel. */
export const BackendRequest = { configChange: 2 } as const;

/** Of a header: the low two bits are the version. */
export const HeaderFlag = { version: 1, reply: 4, needReply: 8 } as const;
export const VERSION_MASK = 3;

export const HEADER_BYTES = 12;
/** Largest payload of a message that we know: a whole configuration. */
export const MAX_PAYLOAD_BYTES = 12 + 256;
export const MAX_CONFIG_BYTES = 256;
/** Of one table (SET_MEM_TABLE), and of those that are added one by one. */
export const MAX_TABLE_REGIONS = 8;
export const MAX_MEMORY_SLOTS = 32;

/** In the low byte of SET_VRING_KICK, _CALL and _ERR is the queue; then, that no descriptor came. */
export const VRING_INDEX_MASK = 0xff;
export const VRING_NO_FD = 0x100;
/** Most queues that a message can name. */
export const MAX_NAMED_QUEUES = 256;
/** SET_VRING_ADDR: writes to the used ring are logged. */
export const VRING_LOG = 1;

/** Bit numbers of features; some are beyond 32 bits, so they are big integers. */
export const Feature = {
  sizeMax: 1n << 1n,
  segMax: 1n << 2n,
  readOnly: 1n << 5n,
  blockSize: 1n << 6n,
  flush: 1n << 9n,
  topology: 1n << 10n,
  configWce: 1n << 11n,
  multiQueue: 1n << 12n,
  discard: 1n << 13n,
  writeZeroes: 1n << 14n,
  notifyOnEmpty: 1n << 24n,
  logAll: 1n << 26n,
  indirect: 1n << 28n,
  eventIndex: 1n << 29n,
  protocolFeatures: 1n << 30n,
  version1: 1n << 32n,
  packedRing: 1n << 34n,
} as const;

export const ProtocolFeature = {
  multiQueue: 1n << 0n,
  logSharedMemory: 1n << 1n,
  replyAck: 1n << 3n,
  backendRequest: 1n << 5n,
  config: 1n << 9n,
  inflight: 1n << 12n,
  memorySlots: 1n << 15n,
} as const;

/** Types of block requests; what the top bit once meant (a barrier) is gone. */
export const BlockRequestType = { in: 0, out: 1, flush: 4, getId: 8, discard: 11, writeZeroes: 13 } as const;
export const BlockStatus = { ok: 0, ioError: 1, unsupported: 2 } as const;
export const SECTOR_BYTES = 512;
/** Length of the answer to GET_ID. */
export const ID_BYTES = 20;
export const WRITE_ZEROES_MAY_UNMAP = 1;

/** Rings (virtio 1.2, 2.7 and 2.8). The last two are of packed rings. */
export const DescriptorFlag = { next: 1, write: 2, indirect: 4, available: 0x80, used: 0x8000 } as const;
/** What each side of a packed ring wants to be told: of all, of nothing, of one descriptor. */
export const RingEvent = { enable: 0, disable: 1, descriptor: 2 } as const;
export const DESCRIPTOR_BYTES = 16;
/** Avail ring: the driver wants no notifications. Used ring: the device wants none. */
export const NO_NOTIFICATION = 1;
export const MAX_QUEUE_SIZE = 32768;
