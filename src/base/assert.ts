/** Thrown when something that must be true is not: a bug in livedisk, never bad input. */
export class AssertionFailure extends Error {
  override name = 'AssertionFailure';
}

/** Stays on in production: a wrong belief about an image must stop before it is written down. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new AssertionFailure(message);
}

export function unreachable(value: never): never {
  throw new AssertionFailure(`unreachable: ${String(value)}`);
}

/** The value, which must be there. */
export function defined<T>(value: T | null | undefined, what: string): T {
  assert(value !== undefined && value !== null, `${what} is missing`);
  return value;
}
