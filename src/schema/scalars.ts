import { BlockError } from '../base/error.js';
import { hugeSize, parseSize } from './size.js';
import type { JsonValue, Type } from './types.js';

/** Types of single values, as the three input modes have them (types.ts). */

export function invalid(message: string, hint?: string): BlockError {
  return new BlockError('invalid', message, hint === undefined ? {} : { hint });
}

export function wrongType(path: string, expected: string): BlockError {
  return invalid(`Invalid parameter type for '${path}', expected: ${expected}`);
}

/** As QEMU names values out of an enumeration or range, and alternates, in its messages; members of lists have no name. */
export function lastName(path: string): string {
  const part = path.slice(path.lastIndexOf('.') + 1);
  return /^\d|\]$/.test(part) ? 'null' : part;
}

function builtin<T>(name: string, jsonType: string, parse: Type<T>['parse']): Type<T> {
  return { name, description: { kind: 'builtin', jsonType }, parse, fill: (value) => value };
}

/** A scalar of a command line; dotted keys may have made it an object or list. */
function scalar(value: JsonValue, path: string): string {
  if (typeof value !== 'string') throw invalid(`Parameters '${path}.*' are unexpected`);
  return value;
}

/** Of flat options: booleans are on and off, numbers their digits. */
export function scalarText(value: JsonValue, path: string): string {
  if (typeof value === 'string') return value;
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  if (typeof value === 'number' || typeof value === 'bigint' || (value as unknown) instanceof Number)
    return `${value as number}`;
  throw wrongType(path, 'string');
}

export const str: Type<string> = builtin('str', 'string', (value, path, mode) => {
  if (mode === 'keyval') return scalar(value, path);
  if (mode === 'flat') return scalarText(value, path);
  if (typeof value !== 'string') throw wrongType(path, 'string');
  return value;
});

/** A str that a flat option may not give as a number or boolean either. */
export const plainStr: Type<string> = {
  ...str,
  parse: (value, path, mode) => str.parse(value, path, mode === 'flat' ? 'qmp' : mode),
};

export const bool: Type<boolean> = builtin('bool', 'boolean', (value, path, mode) => {
  if (mode === 'qmp') {
    if (typeof value !== 'boolean') throw wrongType(path, 'boolean');
    return value;
  }
  const text = mode === 'keyval' ? scalar(value, path) : scalarText(value, path);
  if (['on', 'yes', 'true', 'y'].includes(text)) return true;
  if (['off', 'no', 'false', 'n'].includes(text)) return false;
  throw invalid(`Parameter '${path}' expects 'on' or 'off'`);
});

const MAX_INT64 = 2n ** 63n - 1n;
const MIN_INT64 = -(2n ** 63n);

function tooLarge(path: string): BlockError {
  return new BlockError('limit', `Parameter '${path}' is larger than livedisk supports (2^53)`);
}

/** An int64; one of 2^53 or more is refused as out of livedisk's range, never rounded. */
export const int: Type<number> = builtin('int', 'int', (value, path, mode) => {
  const number = mode === 'qmp' ? value : integerOfText(value, path, mode);
  if (typeof number === 'bigint' && number <= MAX_INT64 && number >= MIN_INT64) {
    throw tooLarge(path);
  }
  if (typeof number !== 'number' || !Number.isSafeInteger(number)) throw wrongType(path, 'integer');
  return number;
});

/** An int64 that is only kept and compared: exact, a bigint from 2^53 on. */
export const int64: Type<number | bigint> = builtin('int', 'int', (value, path, mode) => {
  const number = mode === 'qmp' ? value : integerOfText(value, path, mode);
  const isWhole = typeof number === 'bigint' || (typeof number === 'number' && Number.isSafeInteger(number));
  if (!isWhole || number > MAX_INT64 || number < MIN_INT64) throw wrongType(path, 'integer');
  return number;
});

function integerOfText(value: JsonValue, path: string, mode: 'keyval' | 'flat'): number | bigint {
  const number = parseInteger(mode === 'keyval' ? scalar(value, path) : scalarText(value, path));
  if (number !== undefined) return number;
  throw invalid(`Parameter '${path}' expects ${mode === 'keyval' ? 'integer' : 'a number'}`);
}

/** As strtoll(3) with base 0: decimal, 0x or 0 for octal, white space before it. */
function parseInteger(text: string): number | bigint | undefined {
  const match = /^[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9]\d*))$/.exec(text);
  if (!match) return undefined;
  const [, sign, hex, octal, decimal] = match;
  // Digits without end are out of range, whatever their base.
  const digits = (hex ?? octal ?? decimal ?? '').replace(/^0+(?=.)/, '');
  if (digits.length > 22) return undefined;
  const magnitude = BigInt(`${hex !== undefined ? '0x' : octal !== undefined ? '0o' : ''}${digits}`);
  const value = sign === '-' ? -magnitude : magnitude;
  if (value > MAX_INT64 || value < MIN_INT64) return undefined;
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

const MAX_UINT64 = 2n ** 64n - 1n;

/** An integer of JSON as QEMU takes it for a uint64: negative ones count modulo 2^64. */
function uint64Of(value: JsonValue, path: string): number | bigint {
  const isInteger = typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value));
  if (isInteger && value <= MAX_UINT64 && value >= MIN_INT64) return value;
  throw invalid(`Parameter '${path}' expects uint64`);
}

/** A uint64, exact: a bigint from 2^53 on. */
export const uint64: Type<number | bigint> = builtin('int', 'int', (value, path, mode) =>
  mode === 'qmp' ? uint64Of(value, path) : integerOfText(value, path, mode),
);

/** An int that QEMU keeps in so many bits without a sign. */
function unsigned(bits: 8 | 16 | 32): Type<number> {
  return builtin('int', 'int', (value, path, mode) => {
    const number = mode === 'qmp' ? uint64Of(value, path) : integerOfText(value, path, mode);
    if (typeof number === 'number' && number >= 0 && number < 2 ** bits) return number;
    throw invalid(`Parameter '${lastName(path)}' expects uint${bits}_t`);
  });
}

export const uint8 = unsigned(8);
export const uint16 = unsigned(16);
export const uint32 = unsigned(32);

/** Any finite number. */
export const number: Type<number> = builtin('number', 'number', (value, path, mode) => {
  const given = mode === 'keyval' ? Number(scalar(value, path) || NaN) : value;
  if (mode === 'keyval' && !Number.isFinite(given)) throw invalid(`Parameter '${path}' expects number`);
  // Numbers that were written with a fraction or exponent may be wrapped.
  const plain = (given as unknown) instanceof Number ? Number(given) : given;
  if (typeof plain !== 'number' && typeof plain !== 'bigint') throw wrongType(path, 'number');
  return Number(plain);
});

/** A byte count; on command lines with an optional suffix (k, M, G, T, P, E). */
export const size: Type<number> = builtin('size', 'int', (value, path, mode) => {
  if (mode === 'flat') return flatSize(value, path);
  if (mode === 'keyval') {
    const bytes = parseSize(scalar(value, path));
    if (bytes === undefined) throw invalid(`Parameter '${path}' expects a size value`);
    return bytes;
  }
  const bytes = uint64Of(value, path);
  // What counts modulo 2^64 is beyond what livedisk has, too.
  if (typeof bytes === 'bigint' || bytes < 0) throw tooLarge(path);
  return bytes;
});

/** A byte count below 2^64, exact: a bigint from 2^53 on. Whether there can be so many is for those to say who use it. */
export const exactSize: Type<number | bigint> = builtin('size', 'int', (value, path, mode) => {
  if (mode !== 'qmp') return size.parse(value, path, mode);
  const bytes = uint64Of(value, path);
  return bytes < 0 ? BigInt.asUintN(64, BigInt(bytes)) : bytes;
});

/** A byte count that QAPI has as an int: without suffixes but in flat options. */
export const byteCount: Type<number> = builtin('int', 'int', (value, path, mode) => {
  if (mode === 'flat') return flatSize(value, path);
  const bytes = int.parse(value, path, mode);
  if (bytes < 0) throw noSize(path);
  return bytes;
});

function flatSize(value: JsonValue, path: string): number {
  const text = scalarText(value, path);
  const bytes = parseSize(text);
  if (bytes !== undefined) return bytes;
  const huge = hugeSize(text);
  if (huge === undefined) throw noSize(path);
  throw huge < 2n ** 64n
    ? tooLarge(path)
    : invalid(`Value '${text}' is out of range for parameter '${path}'`);
}

/** QEMU's words for what is no size among flat options and creation options. */
export function noSize(path: string): BlockError {
  return invalid(
    `Parameter '${path}' expects a non-negative number below 2^64`,
    'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n' +
      'and exabytes, respectively.',
  );
}

export const any: Type<JsonValue> = builtin('any', 'value', (value) => value);

export const nullType: Type<null> = builtin('null', 'null', (value, path, mode) => {
  if (value === null || (mode === 'keyval' && value === '')) return null;
  throw wrongType(path, 'null');
});
