import { BlockError } from '../../base/error.js';
import type { FlatOptions } from '../../schema/flat.js';

/** Longest interval, in seconds. */
const MAX_INTERVAL_SECONDS = 2 ** 32 - 1;

const PREFIX = 'stats-intervals.';

/**
 * The list `stats-intervals.0=`, `.1=` ...: lengths in seconds as they were given, which are looked at once the image is open.
 * Errors: invalid, in QEMU's words, for what is no list.
 */
export function takeIntervals(options: FlatOptions): string[] {
  const lengths: string[] = [];
  for (let index = 0; ; index++) {
    const key = `${PREFIX}${index}`;
    const isNested = options.entries().some(([other]) => other.startsWith(`${key}.`));
    const value = options.get(key);
    if (isNested && value === undefined)
      throw new BlockError('invalid', 'The specification of stats-intervals is invalid');
    if (isNested || value === undefined) break;
    options.take(key);
    lengths.push(typeof value === 'string' ? value : JSON.stringify(value));
  }
  const [left] = options.entries().find(([key]) => key.startsWith(PREFIX)) ?? [];
  if (left !== undefined) throw new BlockError('invalid', `Invalid option ${left}`);
  return lengths;
}

/** In seconds. Errors: invalid. */
export function checkedIntervals(texts: readonly string[]): number[] {
  return texts.map((text) => {
    const seconds = /^\s*\+?\d+$/.test(text) ? Number(text) : 0;
    if (seconds >= 1 && seconds <= MAX_INTERVAL_SECONDS) return seconds;
    throw new BlockError('invalid', `Invalid interval length: ${text}`);
  });
}
