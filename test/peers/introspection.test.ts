import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { QmpClient } from '../../src/wire/qmp/client.js';
import { queryQmpSchema } from '../../src/wire/qmp/introspect.js';
import { CommandRegistry } from '../../src/wire/qmp/registry.js';
import { COMMANDS } from '../../src/schema/commands.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { spawnQemu } from './qemu-monitor.js';

/** What livedisk has beyond QEMU 7.2: delays for tests, and raw images made by a job. */
const ADDITIONS = [
  /\(blkdebug\)\.x-delay is not there$/,
  /^blockdev-create\.options\(raw\)\.(file|size) is not there$/,
];

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
    registry.register({ name, arguments: args }, () => ({}));
  return byName(queryQmpSchema(registry));
}

async function qemuSchema(context: TestContext): Promise<Schema | undefined> {
  const path = await spawnQemu(context);
  if (path === undefined) return undefined;
  const client = await QmpClient.connect(createRealHost(), { type: 'unix', path });
  context.after(() => client.close());
  return byName((await client.execute('query-qmp-schema')) as JsonObject[]);
}

/** Compares a type of ours with QEMU's: ours may have less, but what it has must be there alike. */
class Comparison {
  readonly differences: string[] = [];
  readonly #ours: Schema;
  readonly #theirs: Schema;
  readonly #seen = new Set<string>();
  /** In answers a member that QEMU always gives must always be given. */
  readonly #isAnswer: boolean;

  constructor(ours: Schema, theirs: Schema, isAnswer: boolean) {
    this.#ours = ours;
    this.#theirs = theirs;
    this.#isAnswer = isAnswer;
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
    switch (ours['meta-type']) {
      case 'builtin':
        if (ourName !== theirName) this.differences.push(`${where}: ${ourName} is ${theirName}`);
        return;
      case 'enum':
        for (const value of ours['values'] as string[])
          if (!(theirs['values'] as string[]).includes(value))
            this.differences.push(`${where}: value ${value}`);
        return;
      case 'array':
        return this.compare(ours['element-type'] as string, theirs['element-type'] as string, `${where}[]`);
      case 'alternate':
        return this.#alternate(ours, theirs, where);
      default:
        this.#members(ours, theirs, where);
        this.#variants(ours, theirs, where);
    }
  }

  #alternate(ours: JsonObject, theirs: JsonObject, where: string): void {
    const kind = (schema: Schema, { type }: JsonObject): string => {
      const info = schema.get(type as string) ?? {};
      return word(info['json-type'] ?? info['meta-type']);
    };
    for (const member of ours['members'] as JsonObject[]) {
      const wanted = kind(this.#ours, member);
      const same = (theirs['members'] as JsonObject[]).find((other) => kind(this.#theirs, other) === wanted);
      if (same) this.compare(member['type'] as string, same['type'] as string, where);
      else this.differences.push(`${where}: no ${wanted}`);
    }
  }

  #members(ours: JsonObject, theirs: JsonObject, where: string): void {
    const list = (info: JsonObject): JsonObject[] => info['members'] as JsonObject[];
    const isOptional = (member: JsonObject): boolean => 'default' in member;
    for (const member of list(ours)) {
      const path = `${where}.${word(member['name'])}`;
      const same = list(theirs).find(({ name }) => name === member['name']);
      if (!same) this.differences.push(`${path} is not there`);
      else {
        if (isOptional(member) !== isOptional(same))
          this.differences.push(`${path} is optional for one of both`);
        this.compare(member['type'] as string, same['type'] as string, path);
      }
    }
    const names = list(ours).map(({ name }) => name);
    for (const member of list(theirs))
      if (!isOptional(member) && !names.includes(member['name'] ?? ''))
        this.differences.push(
          `${where} lacks ${this.#isAnswer ? 'the answer' : 'the required'} ${word(member['name'])}`,
        );
  }

  #variants(ours: JsonObject, theirs: JsonObject, where: string): void {
    const list = (info: JsonObject): JsonObject[] => (info['variants'] ?? []) as JsonObject[];
    if (ours['tag'] !== theirs['tag'] && ours['tag'] !== undefined) this.differences.push(`${where}: tag`);
    for (const variant of list(ours)) {
      const name = word(variant['case']);
      const same = list(theirs).find((other) => other['case'] === name);
      if (same) this.compare(variant['type'] as string, same['type'] as string, `${where}(${name})`);
      else this.differences.push(`${where}: case ${name}`);
    }
  }
}

test('what the schema says of commands and events is what QEMU says of them', async (context) => {
  const theirs = await qemuSchema(context);
  if (!theirs) return;
  const ours = ourSchema();
  const differences: string[] = [];
  for (const [name, info] of ours) {
    if (info['meta-type'] !== 'command' && info['meta-type'] !== 'event') continue;
    const same = theirs.get(name);
    assert(same, `QEMU has no ${name}`);
    for (const role of ['arg-type', 'ret-type'] as const) {
      if (info[role] === undefined) continue;
      const isAnswer = role === 'ret-type' || info['meta-type'] === 'event';
      const comparison = new Comparison(ours, theirs, isAnswer);
      comparison.compare(
        info[role] as string,
        same[role] as string,
        role === 'ret-type' ? `${name}()` : name,
      );
      differences.push(...comparison.differences);
    }
  }
  const unknown = differences.filter((text) => !ADDITIONS.some((pattern) => pattern.test(text)));
  assert.deepEqual(unknown, []);
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
  // Features mark what is deprecated or unstable; livedisk marks nothing.
  const unused = ['features', 'allow-oob'];
  for (const [kind, keys] of our) {
    const wanted = [...(their.get(kind) ?? [])].filter((key) => !unused.includes(key));
    assert.deepEqual([...keys].sort(), wanted.sort(), kind);
  }
});
