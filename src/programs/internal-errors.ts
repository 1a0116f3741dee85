import { type AssertionFailure, onAssertionFailure } from '../base/assert.js';

/** Bugs with other texts than so many before are not told any more. */
const MOST_TEXTS = 100;

/** Has a program tell of each assertion that fails, once, whatever becomes of the request that met it. */
export function tellAssertionFailures(program: string, write: (text: string) => void): void {
  const told = new Set<string>();
  onAssertionFailure((failure: AssertionFailure) => {
    if (told.has(failure.message) || told.size >= MOST_TEXTS) return;
    told.add(failure.message);
    write(`${program}: internal error: ${failure.stack ?? failure.message}\n`);
  });
}

/**
 * Has a program that is not done, and for which nothing is left that could wake it, tell that and end with status 1: Node
 * would end it as if all was well. To be called when it is done.
 */
export function tellDeadEnd(
  program: string,
  process: Pick<NodeJS.Process, 'once' | 'off' | 'exitCode'>,
  write: (text: string) => void,
): () => void {
  const tell = (): void => {
    write(`${program}: internal error: what it waits for never comes\n`);
    process.exitCode = 1;
  };
  process.once('beforeExit', tell);
  return () => void process.off('beforeExit', tell);
}
