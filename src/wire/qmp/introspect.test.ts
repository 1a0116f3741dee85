import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMMANDS } from '../../schema/commands.js';
import { EVENTS } from '../../schema/events.js';
import { RETURNS } from '../../schema/returns.js';
import type { JsonObject } from '../../schema/types.js';
import {
  alternate,
  arrayOf,
  enumOf,
  int,
  lazy,
  later,
  marked,
  nullType,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  union,
} from '../../schema/types.js';
import { queryQmpSchema } from './introspect.js';
import { CommandRegistry } from './registry.js';

function schemaOf(commands: { [name: string]: Type<unknown> }): Map<string, JsonObject> {
  const registry = new CommandRegistry();
  for (const [name, args] of Object.entries(commands))
    registry.register({ name, arguments: args }, () => ({}));
  const infos = queryQmpSchema(registry);
  const byName = new Map(infos.map((info) => [info['name'] as string, info]));
  assert.equal(byName.size, infos.length, 'names are unique');
  return byName;
}

function argumentsOf(schema: Map<string, JsonObject>, name: string): JsonObject {
  return schema.get(schema.get(name)?.['arg-type'] as string) ?? {};
}

test('every command and event is there, and every type that is referred to', () => {
  const schema = schemaOf(COMMANDS);
  for (const name of [...Object.keys(COMMANDS), ...Object.keys(EVENTS)]) assert(schema.has(name), name);
  for (const info of schema.values()) {
    const parts = ['members', 'variants'].flatMap((list) => (info[list] ?? []) as JsonObject[]);
    const references = [info['arg-type'], info['ret-type'], info['element-type']];
    if (info['meta-type'] !== 'enum') references.push(...parts.map(({ type }) => type));
    for (const reference of references)
      if (reference !== undefined) assert(schema.has(reference as string), JSON.stringify(info));
  }
  const returned = RETURNS['query-qmp-schema']?.parse([...schema.values()], '', 'qmp') as unknown[];
  assert.equal(returned.length, schema.size);
  for (const name of Object.keys(RETURNS)) assert(name in COMMANDS, name);
});

test('objects, enumerations, arrays, alternates and built-in types', () => {
  const tree: Type<unknown> = struct('Tree', {
    name: required(str),
    bytes: optional(size),
    kind: required(enumOf('Kind', ['a', 'b'], ['c'])),
    again: optional(enumOf('Kind', ['a', 'b'])),
    below: optional(arrayOf(lazy('Tree', () => tree))),
    link: optional(alternate('Link', [str, nullType, lazy('Tree', () => tree)])),
    odd: later(int),
  });
  const schema = schemaOf({ grow: tree, nothing: struct('empty', {}) });
  const args = argumentsOf(schema, 'grow');
  const own = args['name'] as string;
  assert.match(own, /^\d+$/);
  const members = args['members'] as JsonObject[];
  const kind = members[2]?.['type'] as string;
  const link = members[5]?.['type'] as string;
  assert.deepEqual(args, {
    name: own,
    'meta-type': 'object',
    members: [
      { name: 'name', type: 'str' },
      { name: 'bytes', default: null, type: 'int' },
      { name: 'kind', type: kind },
      { name: 'again', default: null, type: kind },
      { name: 'below', default: null, type: `[${own}]` },
      { name: 'link', default: null, type: link },
    ],
  });
  assert.deepEqual(schema.get(kind), {
    name: kind,
    'meta-type': 'enum',
    members: [{ name: 'a' }, { name: 'b' }],
    values: ['a', 'b'],
  });
  assert.deepEqual(schema.get(`[${own}]`), { name: `[${own}]`, 'meta-type': 'array', 'element-type': own });
  assert.deepEqual(schema.get(link), {
    name: link,
    'meta-type': 'alternate',
    members: [{ type: 'str' }, { type: 'null' }, { type: own }],
  });
  assert.deepEqual(schema.get('int'), { name: 'int', 'meta-type': 'builtin', 'json-type': 'int' });
  assert.deepEqual(schema.get('str'), { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' });
  assert.deepEqual(schema.get('nothing'), {
    name: 'nothing',
    'meta-type': 'command',
    'arg-type': '0',
    'ret-type': '0',
  });
  assert.deepEqual(schema.get('0'), { name: '0', 'meta-type': 'object', members: [] });
});

test('features of commands, types, members and values are told', () => {
  const kind = enumOf('Kind', ['a', 'b'], [], { b: ['deprecated'] });
  const inner = struct('Inner', { kind: required(kind) }, ['dynamic-auto-read-only']);
  const args = struct('Args', {
    old: marked('deprecated', optional(str)),
    inner: marked('unstable', required(inner)),
    plain: required(str),
  });
  const schema = schemaOf({ 'drive-backup': args, 'blockdev-backup': args });
  assert.deepEqual(schema.get('drive-backup')?.['features'], ['deprecated']);
  assert(!('features' in (schema.get('blockdev-backup') ?? {})));
  const info = argumentsOf(schema, 'drive-backup');
  const members = info['members'] as JsonObject[];
  assert.deepEqual(
    members.map(({ features }) => features),
    [['deprecated'], ['unstable'], undefined],
  );
  assert(!('features' in info));
  const innerInfo = schema.get(members[1]?.['type'] as string);
  assert.deepEqual(innerInfo?.['features'], ['dynamic-auto-read-only']);
  const kindInfo = schema.get((innerInfo?.['members'] as JsonObject[])[0]?.['type'] as string);
  assert.deepEqual(kindInfo?.['members'], [{ name: 'a' }, { name: 'b', features: ['deprecated'] }]);
});

test('a union has a variant for each value of its tag', () => {
  const shape = union('Shape', { type: required(enumOf('ShapeType', ['dot', 'line'], ['solid'])) }, 'type', {
    line: struct('Line', { length: required(int) }),
  });
  const args = argumentsOf(schemaOf({ draw: shape }), 'draw');
  const variants = args['variants'] as JsonObject[];
  assert.equal(args['tag'], 'type');
  assert.deepEqual(
    variants.map((variant) => variant['case']),
    ['dot', 'line'],
  );
  assert.equal(variants[0]?.['type'], '0');
  assert.notEqual(variants[1]?.['type'], '0');
});
