import assert from 'node:assert/strict';
import { OUT_OF_BAND } from '../../src/schema/machine.js';
import { COMMANDS } from '../../src/schema/commands.js';
import { EXTENSION_COMMANDS } from '../../src/schema/extensions.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { queryQmpSchema } from '../../src/wire/qmp/introspect.js';
import { CommandRegistry } from '../../src/wire/qmp/registry.js';

export type Schema = ReadonlyMap<string, JsonObject>;

export function word(value: JsonValue | undefined): string {
  assert(typeof value === 'string');
  return value;
}

export function byName(infos: readonly JsonObject[]): Schema {
  return new Map(infos.map((info) => [info['name'] as string, info]));
}

export function ourSchema(): Schema {
  const registry = new CommandRegistry();
  for (const [name, args] of Object.entries(COMMANDS))
    if (!Object.hasOwn(EXTENSION_COMMANDS, name))
      registry.register({ name, arguments: args, outOfBand: OUT_OF_BAND.has(name) }, () => ({}));
  // As a client is told that has not asked for what QEMU does not have.
  return byName(queryQmpSchema(registry, { hasExtensions: false }));
}

/** Tells every way in which a type of ours is not QEMU's. */
export class Comparison {
  readonly differences: string[] = [];
  readonly #ours: Schema;
  readonly #theirs: Schema;
  readonly #seen = new Set<string>();

  constructor(ours: Schema, theirs: Schema) {
    this.#ours = ours;
    this.#theirs = theirs;
  }

  compareEntities(ours: JsonObject, theirs: JsonObject, name: string): void {
    this.#marks(ours, theirs, name);
    this.compare(word(ours['arg-type']), word(theirs['arg-type']), name);
    if (ours['ret-type'] !== undefined)
      this.compare(word(ours['ret-type']), word(theirs['ret-type']), `${name}()`);
  }

  compare(ourName: string, theirName: string, where: string): void {
    if (this.#seen.has(`${ourName} ${theirName}`)) return;
    this.#seen.add(`${ourName} ${theirName}`);
    const [ours, theirs] = [this.#ours.get(ourName), this.#theirs.get(theirName)];
    assert(ours && theirs, `${where}: ${ourName} ${theirName}`);
    if (ours['meta-type'] !== theirs['meta-type']) {
      this.differences.push(`${where}: ${word(ours['meta-type'])} is ${word(theirs['meta-type'])}`);
      return;
    }
    this.#marks(ours, theirs, where);
    switch (ours['meta-type']) {
      case 'builtin':
        if (ourName !== theirName) this.differences.push(`${where}: ${ourName} is ${theirName}`);
        return;
      case 'enum':
        return this.#values(ours, theirs, where);
      case 'array':
        return this.compare(word(ours['element-type']), word(theirs['element-type']), `${where}[]`);
      case 'alternate':
        return this.#alternate(ours, theirs, where);
      default:
        this.#members(ours, theirs, where);
        this.#variants(ours, theirs, where);
    }
  }

  /** Features, and what else is said of the thing itself. */
  #marks(ours: JsonObject, theirs: JsonObject, where: string): void {
    for (const key of ['features', 'allow-oob', 'tag']) {
      const [our, their] = [JSON.stringify(ours[key]), JSON.stringify(theirs[key])];
      if (our !== their) this.differences.push(`${where}: ${key} ${our} is ${their}`);
    }
  }

  /** Pairs of the same name; what one side has alone is a difference. */
  #pairs(
    ours: JsonObject,
    theirs: JsonObject,
    { list, key }: { list: string; key: string },
    path: (name: string) => string,
  ): Array<[JsonObject, JsonObject, string]> {
    const of = (info: JsonObject): Map<string, JsonObject> =>
      new Map(((info[list] ?? []) as JsonObject[]).map((item) => [word(item[key]), item]));
    const [our, their] = [of(ours), of(theirs)];
    for (const name of our.keys()) if (!their.has(name)) this.differences.push(`more: ${path(name)}`);
    const pairs: Array<[JsonObject, JsonObject, string]> = [];
    for (const [name, item] of their) {
      const same = our.get(name);
      if (same) pairs.push([same, item, path(name)]);
      else this.differences.push(`less: ${path(name)}`);
    }
    return pairs;
  }

  #values(ours: JsonObject, theirs: JsonObject, where: string): void {
    const what = { list: 'members', key: 'name' };
    for (const [our, their, path] of this.#pairs(ours, theirs, what, (name) => `${where}=${name}`))
      this.#marks(our, their, path);
    for (const info of [ours, theirs])
      assert.deepEqual(
        info['values'],
        (info['members'] as JsonObject[]).map(({ name }) => name),
      );
  }

  #alternate(ours: JsonObject, theirs: JsonObject, where: string): void {
    const kinds = (schema: Schema, info: JsonObject): JsonObject[] =>
      (info['members'] as JsonObject[]).map(({ type }) => {
        const target = schema.get(word(type)) ?? {};
        return { kind: word(target['json-type'] ?? target['meta-type']), type: word(type) };
      });
    const [our, their] = [kinds(this.#ours, ours), kinds(this.#theirs, theirs)];
    const what = { list: 'kinds', key: 'kind' };
    for (const [mine, other] of this.#pairs(
      { kinds: our },
      { kinds: their },
      what,
      (kind) => `${where}|${kind}`,
    ))
      this.compare(word(mine['type']), word(other['type']), where);
  }

  #members(ours: JsonObject, theirs: JsonObject, where: string): void {
    const what = { list: 'members', key: 'name' };
    for (const [our, their, path] of this.#pairs(ours, theirs, what, (name) => `${where}.${name}`)) {
      if ('default' in our !== 'default' in their)
        this.differences.push(`${path} is optional for one of both`);
      this.#marks(our, their, path);
      this.compare(word(our['type']), word(their['type']), path);
    }
  }

  /** Which there are is what values the tag has. */
  #variants(ours: JsonObject, theirs: JsonObject, where: string): void {
    const list = (info: JsonObject): JsonObject[] => (info['variants'] ?? []) as JsonObject[];
    for (const variant of list(ours)) {
      const name = word(variant['case']);
      const same = list(theirs).find((other) => other['case'] === name);
      if (same) this.compare(word(variant['type']), word(same['type']), `${where}(${name})`);
    }
  }
}
