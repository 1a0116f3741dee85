import { createHash, timingSafeEqual } from 'node:crypto';

/** Takes as long for a wrong one as for the right one. */
export function isSame(given: string, expected: string): boolean {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}
