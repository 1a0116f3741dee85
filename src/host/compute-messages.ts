import { BlockError, type ErrorContext, type ErrorKind } from '../base/error.js';

/** What goes to a thread: a function's arguments, their bytes in shared memory. */
export interface ComputeRequest {
  /** Of the requests that a thread has at a time; the reply repeats it. */
  slot: number;
  name: string;
  input: Uint8Array;
  output: Uint8Array;
  parameters: unknown;
}

/** What comes back. */
export interface ComputeReply {
  slot: number;
  /** -1 with an error. */
  value: number;
  error?: { kind: ErrorKind; message: string; context: ErrorContext };
}

/** An error as it crosses threads, where it loses its class. What is no BlockError is a fault of the function. */
export function packError(error: unknown): NonNullable<ComputeReply['error']> {
  if (!(error instanceof BlockError)) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { kind: 'io', message: `A compute function failed: ${text}`, context: { errno: 'EIO' } };
  }
  const { kind, message, errno, hint } = error;
  return {
    kind,
    message,
    context: { ...(errno !== undefined && { errno }), ...(hint !== undefined && { hint }) },
  };
}

export function unpackError(error: NonNullable<ComputeReply['error']>): BlockError {
  return new BlockError(error.kind, error.message, error.context);
}
