import { constants } from 'node:os';
import { type BlockError, errnoError, type ErrorContext, toBlockError } from '../base/error.js';

/** Errno names by number on this system. */
export function errnoName(number: number): string {
  for (const [name, value] of Object.entries(constants.errno)) if (value === number) return name;
  return `errno ${number}`;
}

/** The error of a call through Node, which has no name for some errnos (EDQUOT). */
export function nodeError(error: unknown, what: string | undefined, context: ErrorContext): BlockError {
  const isNameless =
    error instanceof Error &&
    'code' in error &&
    String(error.code).startsWith('Unknown system error') &&
    'errno' in error &&
    typeof error.errno === 'number';
  // A name with a zero byte in it: no file has such a one.
  if (error instanceof Error && 'code' in error && error.code === 'ERR_INVALID_ARG_VALUE')
    return errnoError('ENOENT', what, { ...context, cause: error });
  if (!isNameless) return toBlockError(error, what, context);
  return errnoError(errnoName(-Number(error.errno)), what, { ...context, cause: error });
}

/** Errnos by which a file system says that it does not have an operation; EOPNOTSUPP has ENOTSUP's number and is told as that. */
const NOT_SUPPORTED = new Set(['ENOTSUP', 'ENOSYS', 'ENODEV', 'ENOTTY', 'EXDEV']);

export function isNotSupported(errno: string): boolean {
  return NOT_SUPPORTED.has(errno);
}

/** The error of a failed call; kind 'unsupported' where the file system lacks the operation. */
export function callError(errno: string, what: string | undefined, context: ErrorContext): BlockError {
  if (isNotSupported(errno)) return errnoError('ENOTSUP', what, context);
  return errnoError(errno, what, context);
}
