const SUFFIXES = 'bkmgtpe';

/**
 * Bytes of "64k", "1.5G", "4096", "0x1000" (suffixes are powers of 1024, in either case); undefined when it is no
 * size or not below 2^53.
 */
export function parseSize(text: string): number | undefined {
  const match =
    /^[ \t\n\v\f\r]*\+?(?:(0[xX][0-9a-fA-F]+)([kmgtpKMGTP])?|(\d+)(\.\d*)?([bkmgtpeBKMGTPE])?)$/.exec(text);
  if (!match) return undefined;
  const [, hex, hexSuffix, digits, fraction = '', suffix] = match;
  const unit = 1024 ** SUFFIXES.indexOf((hexSuffix ?? suffix ?? 'b').toLowerCase());
  if (hex !== undefined) return inRange(Number(hex) * unit);
  if (unit === 1 && /[1-9]/.test(fraction)) return undefined;
  return inRange(Number(digits) * unit + Math.floor(Number(`0${fraction}`) * unit));
}

function inRange(bytes: number): number | undefined {
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Of 2^53 bytes or more; undefined for what is no size. */
export function hugeSize(text: string): bigint | undefined {
  const [, digits = '', suffix = ''] = /^\s*\+?(\d+|0x[0-9a-f]+)([bkmgtpe]?)$/i.exec(text) ?? [];
  if (digits === '' || digits.length > 22) return undefined;
  return BigInt(digits) * 1024n ** BigInt(Math.max(0, 'bkmgtpe'.indexOf(suffix.toLowerCase())));
}
