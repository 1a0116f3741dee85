import { BlockError } from '../base/error.js';
import { invalid, lastName, scalarText, str, wrongType } from './scalars.js';

export * from './scalars.js';

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
 * sizes may have suffixes. flat: scalars of a `json:` name or of --image-opts, strings and JSON types mixed, with the
 * words of QEMU's older option parser (flat.ts takes such options apart).
 */
export type InputMode = 'qmp' | 'keyval' | 'flat';

/** A type of the schema: parses a value of it out of input, or throws in QEMU's words. */
export interface Type<T, F = T> {
  /** Name in the schema, for introspection and messages. */
  readonly name: string;
  readonly description: TypeDescription;
  /** `path` is the full name of the value as messages give it, e.g. options[0].file. */
  parse(value: JsonValue, path: string, mode: InputMode): T;
  /** A parsed value with the defaults of what it leaves out. */
  fill(value: T): F;
}

export type Infer<X> = X extends Type<infer T, unknown> ? T : never;

/** Marks that introspection tells of a command, a type, a member or a value, such as `deprecated`. */
export type Features = readonly string[];

export type TypeDescription =
  | { kind: 'builtin'; jsonType: string }
  | { kind: 'enum'; values: readonly string[]; features?: { readonly [value: string]: Features } }
  | { kind: 'array'; element: Type<unknown> }
  | {
      kind: 'object';
      members: Members;
      features?: Features;
      variants?: { tag: string; cases: ReadonlyMap<string, Type<unknown>> };
    }
  | { kind: 'alternate'; cases: ReadonlyArray<Type<unknown>> };

export interface Member<T, Required extends boolean, F = T> {
  readonly type: Type<T, F>;
  readonly required: Required;
  /** Known, but not done by livedisk yet: giving it is refused by name. */
  readonly later?: boolean;
  /** What a flat option that lacks it is told, where QEMU has words of its own. */
  readonly missingText?: string;
  readonly features?: Features;
  /** livedisk's own: there for clients that asked for its extensions. */
  readonly isExtension?: boolean;
}

export interface DefaultedMember<T, F = T> extends Member<T, false, F> {
  /** Its value when it is not given. */
  readonly default: F;
}

type AnyMember = Member<unknown, boolean, unknown> & { readonly default?: unknown };
export type Members = { readonly [key: string]: AnyMember };

type RequiredKeys<M extends Members> = { [K in keyof M]: M[K]['required'] extends true ? K : never }[keyof M];
type MemberType<X> = X extends { readonly type: Type<infer T, unknown> } ? T : never;
/** As parsed: with the members that were given. */
export type StructOf<M extends Members> = { [K in RequiredKeys<M>]: MemberType<M[K]> } & {
  [K in Exclude<keyof M, RequiredKeys<M>>]?: MemberType<M[K]>;
};

type FilledKeys<M extends Members> =
  RequiredKeys<M> | { [K in keyof M]: M[K] extends { readonly default: unknown } ? K : never }[keyof M];
type FilledType<X> = X extends { readonly type: { fill(value: never): infer F } } ? F : never;
/** With the defaults. */
export type FilledOf<M extends Members> = { [K in FilledKeys<M>]: FilledType<M[K]> } & {
  [K in Exclude<keyof M, FilledKeys<M>>]?: FilledType<M[K]>;
};

/** `later` values are known and refused by name. `features`: of single values. */
export function enumOf<const V extends string>(
  name: string,
  values: readonly V[],
  later: readonly string[] = [],
  features: { readonly [value in V]?: Features } = {},
): Type<V> {
  return {
    name,
    description: { kind: 'enum', values, features: features as { readonly [value: string]: Features } },
    fill: (value) => value,
    parse(input, path, mode) {
      const value = str.parse(input, path, mode);
      if (later.includes(value)) {
        throw new BlockError(
          'unsupported',
          `Value '${value}' of parameter '${path}' is not supported by livedisk yet`,
        );
      }
      const found = values.find((candidate) => candidate === value);
      if (found !== undefined) return found;
      if (mode === 'flat') throw invalid(`invalid parameter value: ${value}`);
      throw invalid(`Parameter '${lastName(path)}' does not accept value '${value}'`);
    },
  };
}

export function arrayOf<T, F>(element: Type<T, F>): Type<T[], F[]> {
  return {
    name: `[${element.name}]`,
    description: { kind: 'array', element },
    fill: (items) => items.map((item) => element.fill(item)),
    parse(value, path, mode) {
      if (!Array.isArray(value)) throw wrongType(path, 'array');
      return value.map((item, i) =>
        element.parse(item, mode === 'keyval' ? `${path}.${i}` : `${path}[${i}]`, mode),
      );
    },
  };
}

/** A type that is looked up when it is used, so that types may refer to each other in circles. */
export function lazy<T, F>(name: string, get: () => Type<T, F>): Type<T, F> {
  return {
    name,
    get description() {
      return get().description;
    },
    parse: (value, path, mode) => get().parse(value, path, mode),
    fill: (value) => get().fill(value),
  };
}

/** A type whose flat form is read by `parse` from the scalar's text. */
export function withFlatForm<T>(type: Type<T>, parse: (text: string) => T): Type<T> {
  return {
    ...type,
    parse: (value, path, mode) =>
      mode === 'flat' ? parse(scalarText(value, path)) : type.parse(value, path, mode),
  };
}

export function required<T, F>(type: Type<T, F>, missingText?: string): Member<T, true, F> {
  return { type, required: true, ...(missingText !== undefined && { missingText }) };
}

export function optional<T, F>(type: Type<T, F>): Member<T, false, F> {
  return { type, required: false };
}

export function defaulted<T, F>(type: Type<T, F>, value: F): DefaultedMember<T, F> {
  return { type, required: false, default: value };
}

/** Known to QEMU; livedisk refuses it by name when it is given. */
export function later<T, F>(type: Type<T, F>): Member<T, false, F> {
  return { type, required: false, later: true };
}

/** The member, on its way out or not to be relied upon. */
export function marked<M extends AnyMember>(feature: 'deprecated' | 'unstable', member: M): M {
  return { ...member, features: [feature] };
}

/** The member, which QEMU does not have. Its name begins with `x-`. */
export function extension<M extends AnyMember>(member: M): M {
  return { ...member, isExtension: true };
}

/** Errors: kind 'invalid' for the first member in `value`, of that type, that is an extension: as of one not known. */
export function refuseExtensions({ description }: Type<unknown>, value: JsonValue, path = ''): void {
  if (description.kind === 'array' && Array.isArray(value)) {
    value.forEach((item, i) => refuseExtensions(description.element, item, `${path}[${i}]`));
  }
  if (description.kind === 'alternate') {
    const type = description.cases.find((candidate) => accepts(candidate, jsonTypeName(value)));
    if (type) refuseExtensions(type, value, path);
  }
  if (description.kind !== 'object' || !isJsonObject(value)) return;
  const { members, variants } = description;
  for (const [key, member] of Object.entries(members)) {
    const given = Object.hasOwn(value, key) ? value[key] : undefined;
    if (given === undefined) continue;
    if (member.isExtension) throw unexpected(join(path, key));
    refuseExtensions(member.type, given, join(path, key));
  }
  const tag = variants && value[variants.tag];
  const branch = typeof tag === 'string' ? variants?.cases.get(tag) : undefined;
  if (branch) refuseExtensions(branch, value, path);
}

/** Known to QEMU, not done by livedisk yet. */
export function refusedByName(path: string): BlockError {
  return new BlockError('unsupported', `Parameter '${path}' is not supported by livedisk yet`);
}

export function fillMembers<M extends Members>(members: M, given: StructOf<M>): FilledOf<M> {
  const out: { [key: string]: unknown } = {};
  for (const [key, member] of Object.entries(members)) {
    const value = (given as { [key: string]: unknown })[key];
    if (value !== undefined) out[key] = member.type.fill(value);
    else if ('default' in member) out[key] = member.default;
  }
  return out as FilledOf<M>;
}

export function struct<const M extends Members>(
  name: string,
  members: M,
  features: Features = [],
): Type<StructOf<M>, FilledOf<M>> {
  return {
    name,
    description: { kind: 'object', members, features },
    fill: (value) => fillMembers(members, value),
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
    fill: (value) => value,
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
    fill: (value) => value,
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
    if (member.later) {
      // Of what has members of its own, none is looked at.
      if (isScalar(member.type)) member.type.parse(value, full, mode);
      throw refusedByName(full);
    }
    out[key] = member.type.parse(value, full, mode);
  }
  return out;
}

export function isScalar({ description }: Type<unknown>): boolean {
  return description.kind === 'builtin' || description.kind === 'enum';
}

function refuseUnexpected(input: JsonObject, known: ReadonlySet<string>, path: string): void {
  for (const key of Object.keys(input)) {
    if (!known.has(key)) throw unexpected(join(path, key));
  }
}

function unexpected(path: string): BlockError {
  return invalid(`Parameter '${path}' is unexpected`);
}
