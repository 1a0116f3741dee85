import { BlockError } from '../base/error.js';
import { parseSize } from './size.js';

/** Plain data as JSON carries it; integers beyond 2^53 are bigints. */
export type JsonValue =
  null | boolean | number | bigint | string | JsonValue[] | { [key: string]: JsonValue };
export type JsonObject = { [key: string]: JsonValue };

/** Not an array, and not one of the wrapped numbers that tell 1.0 from 1. */
export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return (
    typeof value === 'object' &&
    value !== null &&
    !Array.isArray(value) &&
    !((value as unknown) instanceof Number)
  );
}

/**
 * qmp: values have their JSON types. keyval: every scalar arrives as a string (command lines), booleans are on/off,
 * sizes may have suffixes.
 */
export type InputMode = 'qmp' | 'keyval';

/** A type of the schema: parses a value of it out of input, or throws in QEMU's words. */
export interface Type<T> {
  /** Name in the schema, for introspection and messages. */
  readonly name: string;
  readonly description: TypeDescription;
  /** `path` is the full name of the value as messages give it, e.g. options[0].file. */
  parse(value: JsonValue, path: string, mode: InputMode): T;
}

export type Infer<X> = X extends Type<infer T> ? T : never;

export type TypeDescription =
  | { kind: 'builtin'; jsonType: string }
  | { kind: 'enum'; values: readonly string[] }
  | { kind: 'array'; element: Type<unknown> }
  | {
      kind: 'object';
      members: Members;
      variants?: { tag: string; cases: ReadonlyMap<string, Type<unknown>> };
    }
  | { kind: 'alternate'; cases: ReadonlyArray<Type<unknown>> };

export interface Member<T, Required extends boolean> {
  readonly type: Type<T>;
  readonly required: Required;
  /** Known, but not done by livedisk yet: giving it is refused by name. */
  readonly later?: boolean;
}

export type Members = { readonly [key: string]: Member<unknown, boolean> };

type RequiredKeys<M extends Members> = { [K in keyof M]: M[K]['required'] extends true ? K : never }[keyof M];
type MemberType<X> = X extends Member<infer T, boolean> ? T : never;
export type StructOf<M extends Members> = { [K in RequiredKeys<M>]: MemberType<M[K]> } & {
  [K in Exclude<keyof M, RequiredKeys<M>>]?: MemberType<M[K]>;
};

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

function wrongType(path: string, expected: string): BlockError {
  return invalid(`Invalid parameter type for '${path}', expected: ${expected}`);
}

/** QEMU names enumeration values and alternates in its messages by their last part; members of lists have none. */
function lastName(path: string): string {
  const part = path.slice(path.lastIndexOf('.') + 1);
  return /^\d|\]$/.test(part) ? 'null' : part;
}

function builtin<T>(name: string, jsonType: string, parse: Type<T>['parse']): Type<T> {
  return { name, description: { kind: 'builtin', jsonType }, parse };
}

/** A scalar of a command line; dotted keys may have made it an object or list. */
function scalar(value: JsonValue, path: string): string {
  if (typeof value !== 'string') throw invalid(`Parameters '${path}.*' are unexpected`);
  return value;
}

export const str: Type<string> = builtin('str', 'string', (value, path, mode) => {
  if (mode === 'keyval') return scalar(value, path);
  if (typeof value !== 'string') throw wrongType(path, 'string');
  return value;
});

export const bool: Type<boolean> = builtin('bool', 'boolean', (value, path, mode) => {
  if (mode === 'keyval') {
    const text = scalar(value, path);
    if (['on', 'yes', 'true', 'y'].includes(text)) return true;
    if (['off', 'no', 'false', 'n'].includes(text)) return false;
    throw invalid(`Parameter '${path}' expects 'on' or 'off'`);
  }
  if (typeof value !== 'boolean') throw wrongType(path, 'boolean');
  return value;
});

const MAX_INT64 = 2n ** 63n - 1n;
const MIN_INT64 = -(2n ** 63n);

function tooLarge(path: string): BlockError {
  return new BlockError('limit', `Parameter '${path}' is larger than livedisk supports (2^53)`);
}

/** An int64; one of 2^53 or more is refused as out of livedisk's range, never rounded. */
export const int: Type<number> = builtin('int', 'int', (value, path, mode) => {
  const number = mode === 'keyval' ? parseInteger(scalar(value, path), path) : value;
  if (typeof number === 'bigint' && number <= MAX_INT64 && number >= MIN_INT64) {
    throw tooLarge(path);
  }
  if (typeof number !== 'number' || !Number.isSafeInteger(number)) throw wrongType(path, 'integer');
  return number;
});

/** As strtoll(3) with base 0: decimal, 0x or 0 for octal, white space before it. */
function parseInteger(text: string, path: string): number | bigint {
  const match = /^[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9]\d*))$/.exec(text);
  if (!match) throw invalid(`Parameter '${path}' expects integer`);
  const [, sign, hex, octal, decimal] = match;
  // Digits without end are out of range, whatever their base.
  const digits = (hex ?? octal ?? decimal ?? '').replace(/^0+(?=.)/, '');
  if (digits.length > 22) throw invalid(`Parameter '${path}' expects integer`);
  const magnitude = BigInt(`${hex !== undefined ? '0x' : octal !== undefined ? '0o' : ''}${digits}`);
  const value = sign === '-' ? -magnitude : magnitude;
  if (value > MAX_INT64 || value < MIN_INT64) throw invalid(`Parameter '${path}' expects integer`);
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

const MAX_UINT64 = 2n ** 64n - 1n;

/** An integer of JSON as QEMU takes it for a uint64: negative ones count modulo 2^64. */
function uint64(value: JsonValue, path: string): number | bigint {
  const isInteger = typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value));
  if (isInteger && value <= MAX_UINT64 && value >= MIN_INT64) return value;
  throw invalid(`Parameter '${path}' expects uint64`);
}

/** An int that QEMU keeps in 32 bits without a sign. */
export const uint32: Type<number> = builtin('int', 'int', (value, path, mode) => {
  const number = mode === 'keyval' ? parseInteger(scalar(value, path), path) : uint64(value, path);
  if (typeof number === 'number' && number >= 0 && number < 2 ** 32) return number;
  throw invalid(`Parameter '${path}' expects uint32_t`);
});

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
  if (mode === 'keyval') {
    const bytes = parseSize(scalar(value, path));
    if (bytes === undefined) throw invalid(`Parameter '${path}' expects a size value`);
    return bytes;
  }
  const bytes = uint64(value, path);
  // What counts modulo 2^64 is beyond what livedisk has, too.
  if (typeof bytes === 'bigint' || bytes < 0) throw tooLarge(path);
  return bytes;
});

export const any: Type<JsonValue> = builtin('any', 'value', (value) => value);

export const nullType: Type<null> = builtin('null', 'null', (value, path, mode) => {
  if (value === null || (mode === 'keyval' && value === '')) return null;
  throw wrongType(path, 'null');
});

/** `later` values are known and refused by name. */
export function enumOf<const V extends string>(
  name: string,
  values: readonly V[],
  later: readonly string[] = [],
): Type<V> {
  return {
    name,
    description: { kind: 'enum', values },
    parse(input, path, mode) {
      const value = str.parse(input, path, mode);
      if (later.includes(value)) {
        throw new BlockError(
          'unsupported',
          `Value '${value}' of parameter '${path}' is not supported by livedisk yet`,
        );
      }
      const found = values.find((candidate) => candidate === value);
      if (found === undefined) {
        throw invalid(`Parameter '${lastName(path)}' does not accept value '${value}'`);
      }
      return found;
    },
  };
}

export function arrayOf<T>(element: Type<T>): Type<T[]> {
  return {
    name: `[${element.name}]`,
    description: { kind: 'array', element },
    parse(value, path, mode) {
      if (!Array.isArray(value)) throw wrongType(path, 'array');
      return value.map((item, i) =>
        element.parse(item, mode === 'keyval' ? `${path}.${i}` : `${path}[${i}]`, mode),
      );
    },
  };
}

/** A type that is looked up when it is used, so that types may refer to each other in circles. */
export function lazy<T>(name: string, get: () => Type<T>): Type<T> {
  return {
    name,
    get description() {
      return get().description;
    },
    parse: (value, path, mode) => get().parse(value, path, mode),
  };
}

export function required<T>(type: Type<T>): Member<T, true> {
  return { type, required: true };
}

export function optional<T>(type: Type<T>): Member<T, false> {
  return { type, required: false };
}

/** Known to QEMU; livedisk refuses it by name when it is given. */
export function later<T>(type: Type<T>): Member<T, false> {
  return { type, required: false, later: true };
}

export function struct<const M extends Members>(name: string, members: M): Type<StructOf<M>> {
  return {
    name,
    description: { kind: 'object', members },
    parse(value, path, mode) {
      const input = asObject(value, path);
      const out = parseMembers(members, input, path, mode);
      refuseUnexpected(input, new Set(Object.keys(members)), path);
      return out as StructOf<M>;
    },
  };
}

/** A flat union: the members of `base` (one of them the tag) and those of the case that the tag names. */
export function union<
  const B extends Members,
  const G extends keyof B & string,
  C extends { [tag: string]: Type<unknown> },
>(
  name: string,
  base: B,
  tag: G,
  cases: C,
): Type<{ [K in keyof C & string]: Omit<StructOf<B>, G> & { [T in G]: K } & Infer<C[K]> }[keyof C & string]> {
  return {
    name,
    description: { kind: 'object', members: base, variants: { tag, cases: new Map(Object.entries(cases)) } },
    parse(value, path, mode) {
      const input = asObject(value, path);
      const out = parseMembers(base, input, path, mode);
      const branch = cases[out[tag] as string];
      const own = branch?.description.kind === 'object' ? branch.description.members : {};
      Object.assign(out, parseMembers(own, input, path, mode));
      refuseUnexpected(input, new Set([...Object.keys(base), ...Object.keys(own)]), path);
      return out as never;
    },
  };
}

/** One of several types, told apart by the JSON type of the value. */
export function alternate<const T extends ReadonlyArray<Type<unknown>>>(
  name: string,
  types: T,
): Type<Infer<T[number]>> {
  return {
    name,
    description: { kind: 'alternate', cases: types },
    parse(value, path, mode) {
      const wanted = jsonTypeName(value);
      const type = types.find((candidate) => accepts(candidate, wanted));
      if (!type) throw wrongType(lastName(path), name);
      return type.parse(value, path, mode) as Infer<T[number]>;
    },
  };
}

function accepts(type: Type<unknown>, jsonType: string): boolean {
  const { description } = type;
  switch (description.kind) {
    case 'builtin':
      return description.jsonType === jsonType || description.jsonType === 'value';
    case 'enum':
      return jsonType === 'string';
    case 'array':
    case 'object':
      return jsonType === description.kind;
    case 'alternate':
      return description.cases.some((inner) => accepts(inner, jsonType));
  }
}

function jsonTypeName(value: JsonValue): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  if (typeof value === 'number' || typeof value === 'bigint') return 'int';
  if ((value as unknown) instanceof Number) return 'number';
  return typeof value;
}

function asObject(value: JsonValue, path: string): JsonObject {
  if (!isJsonObject(value)) throw wrongType(path, 'object');
  return value;
}

function join(path: string, key: string): string {
  return path === '' ? key : `${path}.${key}`;
}

function parseMembers(
  members: Members,
  input: JsonObject,
  path: string,
  mode: InputMode,
): { [key: string]: unknown } {
  const out: { [key: string]: unknown } = {};
  for (const [key, member] of Object.entries(members)) {
    const value = Object.hasOwn(input, key) ? input[key] : undefined;
    const full = join(path, key);
    if (value === undefined) {
      if (member.required) throw invalid(`Parameter '${full}' is missing`);
      continue;
    }
    const parsed = member.type.parse(value, full, mode);
    if (member.later)
      throw new BlockError('unsupported', `Parameter '${full}' is not supported by livedisk yet`);
    out[key] = parsed;
  }
  return out;
}

function refuseUnexpected(input: JsonObject, known: ReadonlySet<string>, path: string): void {
  for (const key of Object.keys(input)) {
    if (!known.has(key)) throw invalid(`Parameter '${join(path, key)}' is unexpected`);
  }
}
