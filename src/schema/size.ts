const SUFFIXES = 'bkmgtpe';

/** Bytes of "64k", "1.5G", "4096", "0x1000"; undefined when it is no size or not below 2^53. */
export function parseSize(text: string): number | undefined {
  if (/^0[xX][0-9a-fA-F]+$/.test(text)) return inRange(Number(text));
  const match = /^(\d+)(\.\d+)?([bkmgtpeBKMGTPE])?$/.exec(text);
  if (!match) return undefined;
  const suffix = (match[3] ?? 'b').toLowerCase();
  if (match[2] !== undefined && suffix === 'b') return undefined;
  const unit = 1024 ** SUFFIXES.indexOf(suffix);
  return inRange(Math.floor(Number(`${match[1]}${match[2] ?? ''}`) * unit));
}

function inRange(bytes: number): number | undefined {
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}
