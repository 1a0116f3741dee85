import { BlockError, errnoOf, errnoText } from '../../base/error.js';

/** A request of an operation failed: where, and what the system says, in QEMU's words. Passes other errors on. */
export function requestFailure(what: string, error: unknown): BlockError {
  if (!(error instanceof BlockError)) throw error;
  const errno = errnoOf(error);
  return new BlockError(error.kind, `${what}: ${errnoText(errno)}`, { errno, cause: error });
}
