import type { ChildIo, DriverContext } from '../../block/driver.js';

/** The same surroundings, but for that child. */
export function withFile(context: DriverContext, file: ChildIo): DriverContext {
  return Object.create(context, {
    child: { value: (role: string) => (role === 'file' ? file : context.child(role)) },
  }) as DriverContext;
}

/** The same for an image that is only looked at beside the one that may be written. */
export function asReader(context: DriverContext): DriverContext {
  return Object.create(context, { mayWrite: { value: false } }) as DriverContext;
}
