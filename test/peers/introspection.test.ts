import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { QmpClient } from '../../src/wire/qmp/client.js';
import { queryQmpSchema } from '../../src/wire/qmp/introspect.js';
import { CommandRegistry } from '../../src/wire/qmp/registry.js';
import { OUT_OF_BAND } from '../../src/schema/machine.js';
import { COMMANDS } from '../../src/schema/commands.js';
import { EXTENSION_COMMANDS } from '../../src/schema/extensions.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { DIFFERENCES, differencesText, MISSING } from './introspection-differences.js';
import { spawnQemu } from './qemu-monitor.js';

type Schema = ReadonlyMap<string, JsonObject>;

function word(value: JsonValue | undefined): string {
  assert(typeof value === 'string');
  return value;
}

function byName(infos: readonly JsonObject[]): Schema {
  return new Map(infos.map((info) => [info['name'] as string, info]));
}

function ourSchema(): Schema {
  const registry = new CommandRegistry();
  for (const [name, args] of Object.entries(COMMANDS))
    if (!Object.hasOwn(EXTENSION_COMMANDS, name))
      registry.register({ name, arguments: args, outOfBand: OUT_OF_BAND.has(name) }, () => ({}));
  // As a client is told that has not asked for what QEMU does not have.
  return byName(queryQmpSchema(registry, { hasExtensions: false }));
}

async function qemuSchema(context: TestContext): Promise<Schema | undefined> {
  const path = await spawnQemu(context);
  if (path === undefined) return undefined;
  const client = await QmpClient.connect(createRealHost(), { type: 'unix', path });
  context.after(() => client.close());
  return byName((await client.execute('query-qmp-schema')) as JsonObject[]);
}

/** Tells every way in which a type of ours is not QEMU's. */
class Comparison {
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

test('what the schema says of commands and events is what QEMU says of them', async (context) => {
  const theirs = await qemuSchema(context);
  if (!theirs) return;
  const ours = ourSchema();
  const comparison = new Comparison(ours, theirs);
  for (const [name, info] of ours) {
    if (info['meta-type'] !== 'command' && info['meta-type'] !== 'event') continue;
    const same = theirs.get(name);
    if (same) comparison.compareEntities(info, same, name);
    else comparison.differences.push(`more: ${name}`);
  }
  const missing = [...theirs.values()].filter(
    ({ name, 'meta-type': kind }) => kind === 'command' && !ours.has(word(name)),
  );
  assert.deepEqual(missing.map(({ name }) => word(name)).sort(), [...MISSING].sort());
  const { differences } = comparison;
  const unlisted = differences.filter((text) => !DIFFERENCES.includes(text));
  const gone = DIFFERENCES.filter((text) => !differences.includes(text));
  assert.deepEqual({ unlisted, gone }, { unlisted: [], gone: [] });
});

test('the document names every difference', () => {
  const path = 'docs/QMP-DIFFERENCES.md';
  if (process.env['UPDATE'] !== undefined) writeFileSync(path, differencesText());
  assert.equal(readFileSync(path, 'utf8'), differencesText(), 'UPDATE=1 npm run test:peers -- introspection');
});

test('each description has the members that QEMU gives to its kind', async (context) => {
  const theirs = await qemuSchema(context);
  if (!theirs) return;
  const keysByKind = (schema: Schema): Map<string, Set<string>> => {
    const keys = new Map<string, Set<string>>();
    for (const info of schema.values()) {
      const kind = info['meta-type'] as string;
      const known = keys.get(kind) ?? new Set();
      for (const key of Object.keys(info)) known.add(key);
      keys.set(kind, known);
    }
    return keys;
  };
  const [our, their] = [keysByKind(ourSchema()), keysByKind(theirs)];
  // The one event that is deprecated is not livedisk's.
  const unused: { readonly [kind: string]: string } = { event: 'features' };
  for (const [kind, keys] of our) {
    const wanted = [...(their.get(kind) ?? [])].filter((key) => key !== unused[kind]);
    assert.deepEqual([...keys].sort(), wanted.sort(), kind);
  }
});
