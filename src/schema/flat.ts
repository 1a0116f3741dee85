import {
  invalid,
  isJsonObject,
  isScalar,
  type JsonObject,
  type JsonValue,
  type Members,
  refusedByName,
  scalarText,
  type Type,
} from './types.js';

/**
 * Options as `json:` names and --image-opts give them, as dotted keys with scalars: {"file.filename": "x"} and
 * {"file": {"filename": "x"}} are the same, and lists are keys with indices. Values are strings or have JSON types.
 * What is taken is no longer there; what is left in the end nobody knows.
 */
export class FlatOptions {
  readonly #values: Map<string, JsonValue>;

  private constructor(values: Map<string, JsonValue>) {
    this.#values = values;
  }

  static of(options: JsonObject): FlatOptions {
    const values = new Map<string, JsonValue>();
    flattenInto(values, '', options);
    return new FlatOptions(values);
  }

  /** The same options, those of `defaults` where these say nothing. */
  withDefaults(defaults: JsonObject): FlatOptions {
    const values = FlatOptions.of(defaults).#values;
    return new FlatOptions(new Map([...values, ...this.#values]));
  }

  /** The same options but for what `overrides` says. */
  withOverrides(overrides: JsonObject): FlatOptions {
    const values = new Map(this.#values);
    for (const key of Object.keys(overrides))
      for (const known of [...values.keys()]) if (isUnder(known, key) || known === key) values.delete(known);
    flattenInto(values, '', overrides);
    return new FlatOptions(values);
  }

  copy(): FlatOptions {
    return new FlatOptions(new Map(this.#values));
  }

  entries(): Array<[string, JsonValue]> {
    return [...this.#values];
  }

  get isEmpty(): boolean {
    return this.#values.size === 0;
  }

  get firstKey(): string | undefined {
    return this.#values.keys().next().value;
  }

  get(key: string): JsonValue | undefined {
    return this.#values.get(key);
  }

  /** Whether there is anything of that name, or below it. */
  has(key: string): boolean {
    return [...this.#values.keys()].some((known) => known === key || isUnder(known, key));
  }

  put(key: string, value: JsonValue): void {
    this.#values.set(key, value);
  }

  take(key: string): JsonValue | undefined {
    const value = this.#values.get(key);
    this.#values.delete(key);
    return value;
  }

  /** Options of what `key` names: those whose names begin with it and a dot, without that. */
  takeUnder(key: string): FlatOptions {
    const taken = new Map<string, JsonValue>();
    for (const [known, value] of [...this.#values]) {
      if (!isUnder(known, key)) continue;
      taken.set(known.slice(key.length + 1), value);
      this.#values.delete(known);
    }
    return new FlatOptions(taken);
  }

  /** Nested again. */
  nested(): JsonObject {
    return nest([...this.#values].map(([key, value]) => [key.split('.'), value])) as JsonObject;
  }

  /** The same, every scalar as its text: as a command line gives it. */
  nestedTexts(): JsonObject {
    const texts = [...this.#values].map(([key, value]): [string[], string] => [
      key.split('.'),
      scalarText(value, key),
    ]);
    return nest(texts) as JsonObject;
  }
}

function isUnder(key: string, prefix: string): boolean {
  return key.startsWith(`${prefix}.`);
}

/** Where a key is given both ways, the nested one counts. */
function flattenInto(out: Map<string, JsonValue>, prefix: string, value: JsonObject | JsonValue[]): void {
  const entries = Object.entries(value);
  const nested = entries.filter(([, item]) => hasMembers(item));
  for (const [key, item] of entries) if (!hasMembers(item)) out.set(prefix + key, item);
  for (const [key, item] of nested) flattenInto(out, `${prefix}${key}.`, item as JsonObject | JsonValue[]);
}

function hasMembers(value: JsonValue): boolean {
  return Array.isArray(value) ? value.length > 0 : isJsonObject(value) && Object.keys(value).length > 0;
}

function nest(values: ReadonlyArray<[string[], JsonValue]>): JsonValue {
  const groups = new Map<string, Array<[string[], JsonValue]>>();
  for (const [[head = '', ...rest], value] of values) {
    const group = groups.get(head) ?? [];
    group.push([rest, value]);
    groups.set(head, group);
  }
  const entries = [...groups].map(([key, group]): [string, JsonValue] => {
    const [first] = group;
    const isLeaf = group.length === 1 && first?.[0].length === 0;
    return [key, isLeaf ? first[1] : nest(group.filter(([rest]) => rest.length > 0))];
  });
  const isList = entries.length > 0 && entries.every(([key], index) => key === String(index));
  return isList ? entries.map(([, value]) => value) : Object.fromEntries(entries);
}

/** Takes the members out of `flat` and parses them. Errors: in QEMU's words, relative to the options' node. */
export function parseFlatMembers(
  members: Members,
  flat: FlatOptions,
  prefix = '',
): { [key: string]: unknown } | undefined {
  const out: { [key: string]: unknown } = {};
  for (const [key, member] of Object.entries(members)) {
    const path = prefix + key;
    if (member.later) {
      const given = flat.get(path);
      if (given !== null && flat.has(path)) throw refusedByName(path);
    }
    const value = parseFlatMember(member.type, flat, path);
    if (value !== undefined) out[key] = value;
    else if (member.required) throw invalid(member.missingText ?? `Parameter '${key}' is missing`);
  }
  return out;
}

function parseFlatMember(type: Type<unknown>, flat: FlatOptions, path: string): unknown {
  const { description } = type;
  if (isScalar(type)) {
    const value = flat.take(path);
    // As if it were not given.
    return value === undefined || value === null ? undefined : type.parse(value, path, 'flat');
  }
  if (description.kind === 'object' && !description.variants) {
    if (!flat.has(`${path}`) || flat.get(path) !== undefined) return undefined;
    return parseFlatMembers(description.members, flat, `${path}.`);
  }
  const object = description.kind === 'alternate' ? description.cases.find(isObject)?.description : undefined;
  if (object?.kind === 'object') {
    if (!flat.has(path)) return undefined;
    const scalar = flat.take(path);
    if (scalar !== undefined) return type.parse(scalar, path, 'flat');
    return parseFlatMembers(object.members, flat, `${path}.`);
  }
  const under = flat.takeUnder(path);
  if (under.isEmpty) return undefined;
  const element = description.kind === 'array' ? description.element.description : undefined;
  if (element?.kind === 'object') return parseFlatList(element.members, under, path);
  // The rest QEMU reads as command lines' options: scalars are texts, and names begin anew.
  const nested = description.kind === 'array' ? Object.values(under.nestedTexts()) : under.nestedTexts();
  return type.parse(nested, '', 'keyval');
}

/** One item may go without a number. */
function parseFlatList(members: Members, flat: FlatOptions, name: string): unknown[] {
  if (flat.entries().some(([key]) => key in members)) {
    const item = parseFlatMembers(members, flat);
    if (flat.firstKey !== undefined) throw invalid(`Unknown option '${flat.firstKey}' for [${name}]`);
    return [item];
  }
  const list: unknown[] = [];
  for (let index = 0; flat.has(String(index)); index++) {
    const item = flat.takeUnder(String(index));
    list.push(parseFlatMembers(members, item));
    if (item.firstKey !== undefined)
      throw invalid(`[${name}] section doesn't support the option '${item.firstKey}'`);
  }
  if (flat.firstKey !== undefined) throw invalid(`Unused option '${flat.firstKey}' for [${name}]`);
  return list;
}

/** Of which only the members that it always has are asked. */
function isObject({ description }: Type<unknown>): boolean {
  return description.kind === 'object' && !description.variants;
}
