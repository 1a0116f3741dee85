/** What a mirror is to reckon with. Bytes, and bytes a second. */
export interface Situation {
  /** What the target lacks. */
  readonly dirtyBytes: number;
  /** Of that, where guests write so often that a copy would not last. */
  readonly hotBytes: number;
  /** What the target takes. */
  readonly linkRate: number;
  /** What guests write where it is not hot. */
  readonly coldGuestRate: number;
  /** What guests write as long as nobody holds them back. */
  readonly guestRate: number;
}

/** What a way to the end costs. */
export interface Forecast {
  readonly seconds: number;
  /** Over the link, from now on. */
  readonly copiedBytes: number;
}

/** Guests keep at least this part of the rate that they had, */
const LEAST_SHARE = 0.5;
/** and all of it as long as it is less than this part of the link's: to hold them back would win nothing. */
const LEAST_LINK_SHARE = 0.1;
/** A copy that leaves room on the link, so that no guest's write stands in a queue. */
const LINK_USE = 0.95;

/** What is left for copying while guests' writes go to both sides at so much of their rate. */
export function copyRateBeside({ linkRate, guestRate }: Situation, share: number): number {
  return LINK_USE * linkRate - share * guestRate;
}

/** While guests' changes are copied later. Undefined: it does not end. */
export function forecastBackground({ dirtyBytes, linkRate, guestRate }: Situation): Forecast | undefined {
  const rate = linkRate - guestRate;
  if (dirtyBytes === 0) return { seconds: 0, copiedBytes: 0 };
  return rate > 0 ? { seconds: dirtyBytes / rate, copiedBytes: (dirtyBytes * linkRate) / rate } : undefined;
}

/** What is cold first, at the link's rate; of that, guests change some again: it comes with the rest. */
function courseOf(situation: Situation): { coldSeconds: number; restBytes: number } {
  const { dirtyBytes, hotBytes, linkRate, coldGuestRate } = situation;
  const coldBytes = dirtyBytes - hotBytes;
  const coldSeconds = linkRate > 0 ? coldBytes / linkRate : Infinity;
  // On the average, half of it was copied when it is changed.
  return { coldSeconds, restBytes: hotBytes + Math.min(coldBytes, (coldGuestRate * coldSeconds) / 2) };
}

/** Then the rest, with guests' writes on both sides at `share` of their rate. Undefined: it does not end. */
export function forecastBoth(situation: Situation, share: number): Forecast | undefined {
  const { dirtyBytes, hotBytes, linkRate, guestRate } = situation;
  if (dirtyBytes === 0) return { seconds: 0, copiedBytes: 0 };
  const beside = copyRateBeside(situation, share);
  if (beside <= 0 || linkRate <= 0) return undefined;
  const { coldSeconds, restBytes } = courseOf(situation);
  const seconds = restBytes / beside;
  const copiedBytes = dirtyBytes - hotBytes + restBytes + share * guestRate * seconds;
  return { seconds: coldSeconds + seconds, copiedBytes };
}

/** How much of their rate guests keep whatever the time: all, where of the link nothing is known yet. */
export function leastShare({ linkRate, guestRate }: Situation): number {
  if (guestRate <= 0 || linkRate <= 0) return 1;
  return Math.min(1, Math.max(LEAST_SHARE, (LEAST_LINK_SHARE * linkRate) / guestRate));
}

/** How much of their rate guests can keep for the copy to end in time; at least leastShare(). */
export function shareFor(situation: Situation, seconds: number): number {
  const { linkRate, guestRate } = situation;
  const least = leastShare(situation);
  if (least === 1) return 1;
  const { coldSeconds, restBytes } = courseOf(situation);
  const left = seconds - coldSeconds;
  if (left <= 0) return least;
  const share = (LINK_USE * linkRate - restBytes / left) / guestRate;
  return Math.min(1, Math.max(least, share));
}
