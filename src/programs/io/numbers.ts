import { BlockError } from '../../base/error.js';
import { parseSize } from '../../schema/size.js';

const UNITS = ['EiB', 'PiB', 'TiB', 'GiB', 'MiB', 'KiB'] as const;

/** "64 KiB", "1.431 MiB", "512 bytes", "0.25 bytes" is "0.250000 bytes". */
export function formatBytes(bytes: number): string {
  for (const [index, unit] of UNITS.entries()) {
    const size = 1024 ** (UNITS.length - index);
    if (bytes >= size) return `${withoutZeroFraction(fixed(bytes / size, 3))} ${unit}`;
  }
  return `${withoutZeroFraction(fixed(bytes, 6))} bytes`;
}

/** printf's %.Nf: exact halves go to the even digit, unlike toFixed. */
export function fixed(value: number, digits: number): string {
  const scaled = value * 10 ** digits;
  const floor = Math.floor(scaled);
  if (scaled - floor !== 0.5) return value.toFixed(digits);
  return ((floor % 2 === 0 ? floor : floor + 1) / 10 ** digits).toFixed(digits);
}

function withoutZeroFraction(text: string): string {
  return text.replace(/\.0+$/, '');
}

const two = (value: number): string => String(value).padStart(2, '0');

/** "00.01 sec", "01:05.00" or "4:18:09.19"; always with hours and minutes when `fixed`. */
export function formatSeconds(seconds: number, fixed: boolean): string {
  const hundredths = Math.floor(seconds * 100);
  const whole = Math.floor(hundredths / 100);
  const rest = `${two(whole % 60)}.${two(hundredths % 100)}`;
  const minutes = Math.floor(whole / 60) % 60;
  const hours = Math.floor(whole / 3600);
  if (fixed || hours > 0) return `${hours}:${two(minutes)}:${rest}`;
  return minutes > 0 ? `${two(minutes)}:${rest}` : `${rest} sec`;
}

/** A size on a command's line. Errors: invalid, in qemu-io's words. */
export function parseBytes(text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined) return bytes;
  const looksRight = /^(0[xX][0-9a-fA-F]+|\d+(\.\d+)?[bkmgtpeBKMGTPE]?)$/.test(text);
  const isFraction = /^\d+\.\d+[bB]?$/.test(text);
  throw new BlockError(
    'invalid',
    looksRight && !isFraction
      ? `Parsing error: argument too large -- ${text}`
      : `Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${text}`,
  );
}

/** A byte value, decimal, octal (0..) or hexadecimal (0x..). Errors: invalid. */
export function parsePattern(text: string): number {
  const value = /^0[0-7]+$/.test(text)
    ? parseInt(text, 8)
    : /^(0[xX][0-9a-fA-F]+|[1-9]\d*|0)$/.test(text)
      ? Number(text)
      : -1;
  if (value >= 0 && value <= 255) return value;
  throw new BlockError('invalid', `${text} is not a valid pattern byte`);
}
