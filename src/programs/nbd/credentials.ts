import { BlockError } from '../../base/error.js';

/** Errors are told as qemu-nbd tells them. */
export function asCredentials<T>(find: () => T): T {
  try {
    return find();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `Failed to get TLS creds: ${error.message}`, { cause: error });
  }
}
