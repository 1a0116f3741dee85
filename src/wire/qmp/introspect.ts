import { COMMAND_FEATURES, NO_ARGUMENTS } from '../../schema/commands.js';
import { EVENTS } from '../../schema/events.js';
import { EXTENSION_EVENTS } from '../../schema/extensions.js';
import { RETURNS } from '../../schema/returns.js';
import type { Features, JsonObject, Members, Type, TypeDescription } from '../../schema/types.js';
import type { CommandDefinition, CommandRegistry } from './registry.js';

/** Of QAPI's integer types only one is told to clients. */
const BUILTIN_NAMES: { readonly [jsonType: string]: string } = {
  string: 'str',
  boolean: 'bool',
  int: 'int',
  number: 'number',
  value: 'any',
  null: 'null',
};

/**
 * The answer of query-qmp-schema: SchemaInfo objects of every command of `registry`, every event and every type that
 * they use, as far as they are there for the caller. Types have numbers for names, as QEMU's have; members that livedisk
 * refuses by name are not there.
 */
export function queryQmpSchema(registry: CommandRegistry, caller = { hasExtensions: true }): JsonObject[] {
  return new Introspection(caller.hasExtensions).describe(registry.definitions(caller), EVENTS);
}

class Introspection {
  readonly #hasExtensions: boolean;
  readonly #entities: JsonObject[] = [];
  readonly #types: JsonObject[] = [];
  readonly #names = new Map<TypeDescription, string>();
  /** By their values: one enumeration may be written down in several places. */
  readonly #enums = new Map<string, string>();
  readonly #known = new Set<string>();
  #count = 0;

  constructor(hasExtensions: boolean) {
    this.#hasExtensions = hasExtensions;
  }

  describe(
    commands: readonly CommandDefinition[],
    events: { readonly [name: string]: Type<unknown> },
  ): JsonObject[] {
    this.#nameOf(NO_ARGUMENTS);
    for (const { name, arguments: args, returns, outOfBand } of commands) {
      this.#entities.push({
        name,
        'ret-type': this.#nameOf(returns ?? RETURNS[name] ?? NO_ARGUMENTS),
        'meta-type': 'command',
        'arg-type': this.#nameOf(args),
        ...(outOfBand === true && { 'allow-oob': true }),
        ...marks(COMMAND_FEATURES[name]),
      });
    }
    for (const [name, data] of Object.entries(events)) {
      if (EXTENSION_EVENTS.has(name) && !this.#hasExtensions) continue;
      this.#entities.push({ name, 'meta-type': 'event', 'arg-type': this.#nameOf(data) });
    }
    return [...this.#entities, ...this.#types];
  }

  /** The name by which a type is referred to; describes it the first time. */
  #nameOf(type: Type<unknown>): string {
    const { description } = type;
    switch (description.kind) {
      case 'builtin':
        return this.#builtin(description.jsonType);
      case 'array':
        return this.#array(description.element);
      case 'enum':
        return this.#enum(type.name, description);
      case 'object':
        return this.#object(description);
      case 'alternate':
        return this.#alternate(description);
    }
  }

  #builtin(jsonType: string): string {
    const name = BUILTIN_NAMES[jsonType] ?? jsonType;
    if (!this.#known.has(name)) {
      this.#known.add(name);
      this.#types.push({ name, 'json-type': jsonType, 'meta-type': 'builtin' });
    }
    return name;
  }

  #array(element: Type<unknown>): string {
    const elementName = this.#nameOf(element);
    const name = `[${elementName}]`;
    if (!this.#known.has(name)) {
      this.#known.add(name);
      this.#types.push({ name, 'element-type': elementName, 'meta-type': 'array' });
    }
    return name;
  }

  #enum(typeName: string, { values, features = {} }: Extract<TypeDescription, { kind: 'enum' }>): string {
    const key = JSON.stringify([typeName, values, features]);
    let name = this.#enums.get(key);
    if (name === undefined) {
      name = this.#next();
      this.#enums.set(key, name);
      const members = values.map((value) => ({ name: value, ...marks(features[value]) }));
      this.#types.push({ name, members, 'meta-type': 'enum', values: [...values] });
    }
    return name;
  }

  #object(description: Extract<TypeDescription, { kind: 'object' }>): string {
    const { members, variants, features } = description;
    if (this.#visible(members).length === 0 && !variants && description !== NO_ARGUMENTS.description)
      return this.#nameOf(NO_ARGUMENTS);
    const found = this.#names.get(description);
    if (found !== undefined) return found;
    const info = this.#begin(description);
    if (variants) {
      info['tag'] = variants.tag;
      info['variants'] = this.#variants(members, variants);
    }
    info['members'] = this.#members(members);
    info['meta-type'] = 'object';
    Object.assign(info, marks(features));
    return info['name'] as string;
  }

  #variants(
    members: Members,
    { tag, cases }: { tag: string; cases: ReadonlyMap<string, Type<unknown>> },
  ): JsonObject[] {
    const values = members[tag]?.type.description;
    const names = values?.kind === 'enum' ? values.values : [...cases.keys()];
    return names.map((name) => ({ case: name, type: this.#nameOf(cases.get(name) ?? NO_ARGUMENTS) }));
  }

  #members(members: Members): JsonObject[] {
    return this.#visible(members).map(([name, { type, required, features }]) => ({
      name,
      ...(!required && { default: null }),
      type: this.#nameOf(type),
      ...marks(features),
    }));
  }

  #visible(members: Members): Array<[string, Members[string]]> {
    return Object.entries(members).filter(
      ([, { later, isExtension }]) => !later && (this.#hasExtensions || !isExtension),
    );
  }

  #alternate(description: Extract<TypeDescription, { kind: 'alternate' }>): string {
    const found = this.#names.get(description);
    if (found !== undefined) return found;
    const info = this.#begin(description);
    info['members'] = description.cases.map((type) => ({ type: this.#nameOf(type) }));
    info['meta-type'] = 'alternate';
    return info['name'] as string;
  }

  /** Named before its members are looked at, since they may lead back to it. */
  #begin(description: TypeDescription): JsonObject {
    const info: JsonObject = { name: this.#next() };
    this.#names.set(description, info['name'] as string);
    this.#types.push(info);
    return info;
  }

  #next(): string {
    return String(this.#count++);
  }
}

function marks(features: Features | undefined): { features?: string[] } {
  return features === undefined || features.length === 0 ? {} : { features: [...features] };
}
