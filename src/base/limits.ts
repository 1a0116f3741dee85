/** Every bound that livedisk puts on what it is given, with its reason. Bytes unless the name says otherwise. */
export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;

/**
 * Most images below one in a backing chain: each costs a file descriptor and its tables. QEMU opens as many, and crashes
 * at twice the number; answers that nest once an image stay within what JSON parsers take.
 */
export const MAX_CHAIN_DEPTH = 1000;
/** Deepest nesting of options and of implicitly opened files (json: names inside backing strings). */
export const MAX_OPEN_DEPTH = 32;
/** Tables of images that are only read, such as those of a backing chain, are kept in so much, all of them together. */
export const READ_TABLES_BYTES = 256 * MiB;
/** Most bytes of one QMP message; QEMU's token limit is of the same order. */
export const MAX_JSON_BYTES = 64 * MiB;
export const MAX_JSON_DEPTH = 1024;
/** Most words (brackets, separators, strings, numbers) of one QMP message; QEMU's limit. */
export const MAX_JSON_TOKENS = 2 ** 21;
/** QEMU's NBD server refuses larger requests (and so the block size it advertises). */
export const MAX_NBD_REQUEST_BYTES = 32 * MiB;
/** Largest view of memory that is shared with another process: every call of Node takes it. */
export const MAX_VIEW_BYTES = GiB;
/** Longest NBD export name (NBD protocol, "Values: strings"). */
export const MAX_NBD_STRING_BYTES = 4096;
/** Payload that one client may have in flight before its socket is no longer read. */
export const MAX_CLIENT_IN_FLIGHT_BYTES = 64 * MiB;
/** The same of all clients of one server together. */
export const MAX_SERVER_IN_FLIGHT_BYTES = 512 * MiB;
/** Memory that all clients of one NBD server together keep, whoever waits for whom; one request may go beyond it. */
export const MAX_SERVER_BUFFER_BYTES = 768 * MiB;
/**
 * Beyond that, where those who hold it do not take what they asked for: shared by all clients alike, each of which may
 * have one request of its share.
 */
export const NBD_RESERVE_BYTES = 128 * MiB;
/** Clients of one NBD server at a time: each has a buffer for its replies, of 256 KiB. */
export const MAX_NBD_CONNECTIONS = 1024;
/** Largest qcow2 L1 table that is loaded (QEMU: 32 MiB, which maps 2 PiB with 64 KiB clusters). */
export const MAX_L1_BYTES = 32 * MiB;
/** Largest qcow2 refcount table that is loaded (QEMU: 8 MiB). */
export const MAX_REFTABLE_BYTES = 8 * MiB;
/** Longest backing file name in a qcow2 header (qcow2 specification, backing_file_size). */
export const MAX_BACKING_NAME_BYTES = 1023;
/** Longest filename of a node; QEMU cuts longer ones too. */
export const MAX_FILENAME_BYTES = 4095;
/** QEMU's BDRV_REQUEST_MAX_BYTES rounded down to a MiB: larger requests are split. */
export const MAX_REQUEST_BYTES = 2047 * MiB;
/** Node names longer than this are refused (QEMU keeps them in 32 bytes). */
export const MAX_NODE_NAME_CHARS = 31;
/** Longest dirty bitmap name (qcow2 specification, bitmap directory). */
export const MAX_BITMAP_NAME_BYTES = 1023;
/** Longest write that is made on the event loop: half a millisecond of copying, while a thread's wake-up costs 0.1. */
export const MAX_SYNC_WRITE_BYTES = MiB;
/** Tasks of one user that wait for compute threads; each holds its buffers. */
export const MAX_WAITING_COMPUTE_TASKS = 1024;
/** Largest image: offsets stay exact as numbers and leave room for rounding up. */
export const MAX_IMAGE_BYTES = 2 ** 53 - 2 ** 32;

/** Events that an iterator keeps for a program that does not take them: then it ends with an error. */
export const MAX_WAITING_EVENTS = 10_000;
/** Granules of one dirty bitmap: 1 GiB of memory, touched as bits are set; 4 TiB in granules of 512 bytes. */
export const MAX_BITMAP_GRANULES = 2 ** 33;
