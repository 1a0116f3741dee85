let listener: ((failure: AssertionFailure) => void) | undefined;

/**
 * Who is told of each failure as it comes up; it must not throw. Whoever catches one may have no way to say what it was: a
 * guest's request is answered with an I/O error.
 */
export function onAssertionFailure(tell: ((failure: AssertionFailure) => void) | undefined): void {
  listener = tell;
}

/** Thrown when something that must be true is not: a bug in livedisk, never bad input. */
export class AssertionFailure extends Error {
  override name = 'AssertionFailure';

  constructor(message: string) {
    super(message);
    listener?.(this);
  }
}

/** A text that has parts is a function: to put it together for each check costs more than the check. */
type Message = string | (() => string);

/** Stays on in production: a wrong belief about an image must stop before it is written down. */
export function assert(condition: unknown, message: Message): asserts condition {
  if (!condition) throw new AssertionFailure(typeof message === 'string' ? message : message());
}

export function unreachable(value: never): never {
  throw new AssertionFailure(`unreachable: ${String(value)}`);
}

/** The value, which must be there. */
export function defined<T>(value: T | null | undefined, what: string): T {
  return value ?? missing(what);
}

/** For `value ?? missing(...)`, where even the text costs too much. */
export function missing(what: string): never {
  throw new AssertionFailure(`${what} is missing`);
}
