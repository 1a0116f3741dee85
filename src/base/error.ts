/** What went wrong, by what a caller can do about it. */
export type ErrorKind =
  | 'io' // the device or network failed a request
  | 'no-space'
  | 'permission' // the operating system or a read-only node refuses
  | 'not-found' // a file, node, job or export that is named does not exist
  | 'device-not-found' // QMP class DeviceNotFound
  | 'device-not-active' // QMP class DeviceNotActive
  | 'exists'
  | 'busy' // in use, locked, or a permission conflict in the graph
  | 'invalid' // a wrong argument or option
  | 'unsupported' // recognised, but livedisk (or the file system) does not do it
  | 'corrupt' // an image or message that breaks its format
  | 'limit' // over one of base/limits
  | 'timeout'
  | 'cancelled'
  | 'closed'; // the connection or file is gone

export interface ErrorContext {
  /** Operating system error name such as 'ENOSPC'. */
  errno?: string;
  node?: string;
  path?: string;
  /** Byte offset in the node or file named. */
  offset?: number;
  /** What to look at next, for a line of its own below the message in a terminal; no part of QMP's `desc`. */
  hint?: string;
  cause?: unknown;
}

/** Every operational failure of livedisk. `message` is what QMP shows as `desc`, in QEMU's words where QEMU has some. */
export class BlockError extends Error {
  override name = 'BlockError';
  readonly kind: ErrorKind;
  readonly errno?: string;
  readonly node?: string;
  readonly path?: string;
  readonly offset?: number;
  /** Its own, or else that of the error that caused it. */
  readonly hint?: string;

  constructor(kind: ErrorKind, message: string, context: ErrorContext = {}) {
    super(message, context.cause === undefined ? undefined : { cause: context.cause });
    this.kind = kind;
    if (context.errno !== undefined) this.errno = context.errno;
    if (context.node !== undefined) this.node = context.node;
    if (context.path !== undefined) this.path = context.path;
    if (context.offset !== undefined) this.offset = context.offset;
    const hint = context.hint ?? (context.cause instanceof BlockError ? context.cause.hint : undefined);
    if (hint !== undefined) this.hint = hint;
  }
}

/** Kind and strerror(3) text (as glibc words it) of the errnos that block I/O meets. */
const ERRNO: Record<string, readonly [ErrorKind, string]> = {
  EPERM: ['permission', 'Operation not permitted'],
  ENOENT: ['not-found', 'No such file or directory'],
  EIO: ['io', 'Input/output error'],
  ENXIO: ['not-found', 'No such device or address'],
  EBADF: ['closed', 'Bad file descriptor'],
  EAGAIN: ['busy', 'Resource temporarily unavailable'],
  ENOMEM: ['limit', 'Cannot allocate memory'],
  EACCES: ['permission', 'Permission denied'],
  EBUSY: ['busy', 'Device or resource busy'],
  EEXIST: ['exists', 'File exists'],
  ENOTDIR: ['not-found', 'Not a directory'],
  EISDIR: ['invalid', 'Is a directory'],
  EINVAL: ['invalid', 'Invalid argument'],
  EMFILE: ['limit', 'Too many open files'],
  EFBIG: ['limit', 'File too large'],
  ENOSPC: ['no-space', 'No space left on device'],
  EDQUOT: ['no-space', 'Disk quota exceeded'],
  EROFS: ['permission', 'Read-only file system'],
  ESPIPE: ['invalid', 'Illegal seek'],
  EPIPE: ['closed', 'Broken pipe'],
  ENAMETOOLONG: ['invalid', 'File name too long'],
  ENOTSUP: ['unsupported', 'Operation not supported'],
  EOPNOTSUPP: ['unsupported', 'Operation not supported'],
  ESHUTDOWN: ['closed', 'Cannot send after transport endpoint shutdown'],
  ECONNREFUSED: ['not-found', 'Connection refused'],
  ECONNRESET: ['closed', 'Connection reset by peer'],
  ETIMEDOUT: ['timeout', 'Connection timed out'],
  EADDRINUSE: ['busy', 'Address already in use'],
  EADDRNOTAVAIL: ['invalid', 'Cannot assign requested address'],
  ECANCELED: ['cancelled', 'Operation canceled'],
  EINTR: ['busy', 'Interrupted system call'],
  E2BIG: ['limit', 'Argument list too long'],
  ENODEV: ['not-found', 'No such device'],
  EXDEV: ['invalid', 'Invalid cross-device link'],
  ENFILE: ['limit', 'Too many open files in system'],
  ENOTTY: ['unsupported', 'Inappropriate ioctl for device'],
  ETXTBSY: ['busy', 'Text file busy'],
  EMLINK: ['limit', 'Too many links'],
  ELOOP: ['invalid', 'Too many levels of symbolic links'],
  ENOTEMPTY: ['exists', 'Directory not empty'],
  EOVERFLOW: ['limit', 'Value too large for defined data type'],
  EDEADLK: ['busy', 'Resource deadlock avoided'],
  ENOLCK: ['limit', 'No locks available'],
  ESTALE: ['io', 'Stale file handle'],
  ENOMEDIUM: ['not-found', 'No medium found'],
  EMEDIUMTYPE: ['invalid', 'Wrong medium type'],
  EREMOTEIO: ['io', 'Remote I/O error'],
  EPROTO: ['io', 'Protocol error'],
  EBADMSG: ['io', 'Bad message'],
  ENOTCONN: ['closed', 'Transport endpoint is not connected'],
  ENETUNREACH: ['not-found', 'Network is unreachable'],
  EHOSTUNREACH: ['not-found', 'No route to host'],
  ECONNABORTED: ['closed', 'Software caused connection abort'],
  EAFNOSUPPORT: ['unsupported', 'Address family not supported by protocol'],
  ENOBUFS: ['limit', 'No buffer space available'],
  ENOSYS: ['unsupported', 'Function not implemented'],
  ENOTSOCK: ['invalid', 'Socket operation on non-socket'],
};

/** strerror(3) of an errno name; the name itself when it is not one that block I/O meets. */
export function errnoText(errno: string): string {
  return ERRNO[errno]?.[1] ?? errno;
}

/** A BlockError whose message is the errno's text, prefixed by `what` when given. */
export function errnoError(errno: string, what?: string, context: ErrorContext = {}): BlockError {
  const kind = ERRNO[errno]?.[0] ?? 'io';
  const text = errnoText(errno);
  return new BlockError(kind, what === undefined ? text : `${what}: ${text}`, { ...context, errno });
}

/** The errno by which a protocol without our error kinds (NBD, on-error policies) sees an error. */
export function errnoOf(error: unknown): string {
  if (error instanceof BlockError) {
    if (error.errno !== undefined) return error.errno;
    switch (error.kind) {
      case 'no-space':
        return 'ENOSPC';
      case 'permission':
        return 'EPERM';
      case 'invalid':
        return 'EINVAL';
      case 'unsupported':
        return 'ENOTSUP';
      case 'closed':
        return 'ESHUTDOWN';
      case 'cancelled':
        return 'ECANCELED';
      default:
        return 'EIO';
    }
  }
  return 'EIO';
}

/** Passes BlockErrors on and wraps anything else that a system call threw. */
export function toBlockError(error: unknown, what?: string, context: ErrorContext = {}): BlockError {
  if (error instanceof BlockError) return error;
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') {
    return errnoError(error.code, what, { ...context, cause: error });
  }
  const text = error instanceof Error ? error.message : String(error);
  return new BlockError('io', what === undefined ? text : `${what}: ${text}`, { ...context, cause: error });
}

/** The line that a terminal shows below the message: empty where there is none. */
export function hintOf(error: Error): string {
  return error instanceof BlockError && error.hint !== undefined ? `${error.hint}\n` : '';
}

/** A driver cannot do this at all: callers may do it another way. */
export function isUnsupported(error: unknown): boolean {
  return error instanceof BlockError && error.kind === 'unsupported';
}
