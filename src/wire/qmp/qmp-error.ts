import { BlockError } from '../../base/error.js';

/** A QMP error as the wire has it. */
export type ErrorClass =
  'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound' | 'KVMMissingCap';

export class QmpError extends Error {
  override name = 'QmpError';
  readonly errorClass: ErrorClass;

  constructor(errorClass: ErrorClass, description: string) {
    super(description);
    this.errorClass = errorClass;
  }
}

/** What went wrong in operation, here or at a server that was asked: a message for people. Anything else is a bug. */
export function isForPeople(error: unknown): error is BlockError | QmpError {
  return error instanceof BlockError || error instanceof QmpError;
}
