/**
 * How much of what is drawn at random, or goes through all that can be, one run does. A run does a part, another one
 * each time, so that it stays short; `TEST_SHARE=1 npm test -- PART_OF_A_FILE_NAME` (or `npm run test:peers`) does the whole, as
 * CI does of the engine's in a step.
 */
const SHARE = Number(process.env['TEST_SHARE'] ?? 0.3);

/** Of so many runs those to do: one at least. */
export const partOf = (runs: number): number => Math.ceil(runs * SHARE);

/** Whether a case that others resemble is done this time. */
export const isDrawn = (): boolean => Math.random() < SHARE;

/** Of cases that resemble one another: all, or one or more. */
export function drawn<T>(cases: readonly T[]): T[] {
  const found = [...cases];
  while (found.length > partOf(cases.length)) found.splice(Math.floor(Math.random() * found.length), 1);
  return found;
}
