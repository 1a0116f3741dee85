import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import { BlockError, type ErrorKind } from '../base/error.js';
import {
  BlockdevCreateOptions,
  BlockdevOptions,
  BlockExportOptions,
  SocketAddressLegacy,
} from './block-types.js';
import { BlockdevCreate, Transaction } from './commands.js';
import {
  alternate,
  any,
  arrayOf,
  bool,
  enumOf,
  type InputMode,
  int,
  type JsonValue,
  nullType,
  optional,
  required,
  size,
  str,
  struct,
  uint32,
  uint8,
  type Type,
  union,
} from './types.js';

function refused(
  type: Type<unknown>,
  value: JsonValue,
  message: string,
  { mode = 'qmp', kind = 'invalid' }: { mode?: InputMode; kind?: ErrorKind } = {},
): void {
  assert.throws(
    () => type.parse(value, '', mode),
    (error) => {
      assert(error instanceof BlockError, String(error));
      assert.deepEqual([error.kind, error.message], [kind, message], inspect(value));
      return true;
    },
  );
}

const debug = (members: { [key: string]: JsonValue }): JsonValue => ({
  driver: 'blkdebug',
  'node-name': 'x',
  image: { driver: 'null-co' },
  ...members,
});

test("members that are wrong are named in QEMU's words", () => {
  const nodes: Array<[JsonValue, string]> = [
    [{}, "Parameter 'driver' is missing"],
    [{ driver: 'foo' }, "Parameter 'driver' does not accept value 'foo'"],
    [{ driver: 3 }, "Invalid parameter type for 'driver', expected: string"],
    [{ driver: 'null-co', foo: 1 }, "Parameter 'foo' is unexpected"],
    [{ driver: 'null-co', size: '4' }, "Invalid parameter type for 'size', expected: integer"],
    [{ driver: 'null-co', size: 4.5 }, "Invalid parameter type for 'size', expected: integer"],
    [{ driver: 'null-co', size: 2n ** 63n }, "Invalid parameter type for 'size', expected: integer"],
    [
      { driver: 'null-co', cache: { direct: 1 } },
      "Invalid parameter type for 'cache.direct', expected: boolean",
    ],
    [{ driver: 'null-co', cache: [] }, "Invalid parameter type for 'cache', expected: object"],
    [
      { driver: 'null-co', cache: new Number(1) as unknown as number },
      "Invalid parameter type for 'cache', expected: object",
    ],
    [
      { driver: 'qcow2', file: new Number(1) as unknown as number },
      "Invalid parameter type for 'file', expected: BlockdevRef",
    ],
    [{ driver: 'null-co', cache: { aa: 1 } }, "Parameter 'cache.aa' is unexpected"],
    [{ driver: 'qcow2', 'node-name': 'x' }, "Parameter 'file' is missing"],
    [{ driver: 'qcow2', file: null }, "Invalid parameter type for 'file', expected: BlockdevRef"],
    [
      { driver: 'qcow2', file: 'a', backing: 7 },
      "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
    ],
    [debug({ image: 3 }), "Invalid parameter type for 'image', expected: BlockdevRef"],
    [debug({ image: { driver: 'foo' } }), "Parameter 'driver' does not accept value 'foo'"],
    [
      debug({ image: { driver: 'null-co', size: null } }),
      "Invalid parameter type for 'image.size', expected: integer",
    ],
    [
      debug({ 'inject-error': [{ event: 'read_aio', errno: 'x' }] }),
      "Invalid parameter type for 'inject-error[0].errno', expected: integer",
    ],
    [
      debug({ 'inject-error': [{ event: 'read_aio', foo: 'x' }] }),
      "Parameter 'inject-error[0].foo' is unexpected",
    ],
    [
      debug({ 'inject-error': [{ event: 'read_aio' }, 7] }),
      "Invalid parameter type for 'inject-error[1]', expected: object",
    ],
    [debug({ 'inject-error': [{ event: 'foo' }] }), "Parameter 'event' does not accept value 'foo'"],
    [debug({ 'inject-error': {} }), "Invalid parameter type for 'inject-error', expected: array"],
    [{ driver: 'file', filename: '/x', locking: 'foo' }, "Parameter 'locking' does not accept value 'foo'"],
  ];
  for (const [value, message] of nodes) refused(BlockdevOptions, value, message);
});

test('commands of several levels', () => {
  const exportOf = (members: { [key: string]: JsonValue }): JsonValue => ({
    type: 'nbd',
    id: 'x',
    'node-name': 'b',
    ...members,
  });
  refused(BlockExportOptions, { z: 1 }, "Parameter 'type' is missing");
  refused(BlockExportOptions, exportOf({ name: 3 }), "Invalid parameter type for 'name', expected: string");
  refused(
    BlockExportOptions,
    exportOf({ writable: 'on' }),
    "Invalid parameter type for 'writable', expected: boolean",
  );
  refused(SocketAddressLegacy, { type: 'unix' }, "Parameter 'data' is missing");
  refused(
    SocketAddressLegacy,
    { type: 'unix', data: { path: 'x', foo: 1 } },
    "Parameter 'data.foo' is unexpected",
  );
  refused(SocketAddressLegacy, { type: 'inet', data: { port: '1' } }, "Parameter 'data.host' is missing");
  const actions = (...list: JsonValue[]): JsonValue => ({ actions: list });
  refused(Transaction, actions({ type: 'foo' }), "Parameter 'type' does not accept value 'foo'");
  refused(Transaction, actions({ type: 'abort' }), "Parameter 'actions[0].data' is missing");
  refused(
    Transaction,
    actions({ type: 'abort', data: { x: 1 } }),
    "Parameter 'actions[0].data.x' is unexpected",
  );
  refused(
    Transaction,
    actions({ type: 'abort', data: {} }, 7),
    "Invalid parameter type for 'actions[1]', expected: object",
  );
  refused(
    Transaction,
    { actions: [], properties: { 'completion-mode': 'x' } },
    "Parameter 'completion-mode' does not accept value 'x'",
  );
  const create = (options: JsonValue): JsonValue => ({ 'job-id': 'x', options });
  refused(
    BlockdevCreate,
    create({ driver: 'file', filename: 'x', size: '3' }),
    "Parameter 'options.size' expects uint64",
  );
  refused(BlockdevCreate, create({ driver: 'file', filename: 'x' }), "Parameter 'options.size' is missing");
  refused(
    BlockdevCreate,
    create({ driver: 'qcow2', file: { driver: 'file' }, size: 3 }),
    "Parameter 'options.file.filename' is missing",
  );
});

test('enumerations and alternates within lists have no name', () => {
  const list = struct('list', { enable: required(arrayOf(enumOf('E', ['oob']))) });
  refused(list, { enable: ['foo'] }, "Parameter 'null' does not accept value 'foo'");
  refused(list, { enable: [3] }, "Invalid parameter type for 'enable[0]', expected: string");
  refused(list, { enable: 'oob' }, "Invalid parameter type for 'enable', expected: array");
  const either = struct('list', { bitmaps: required(arrayOf(alternate('BitmapOrStr', [str, nullType]))) });
  refused(either, { bitmaps: [3] }, "Invalid parameter type for 'null', expected: BitmapOrStr");
  assert.deepEqual(either.parse({ bitmaps: [null, 'b'] }, '', 'qmp'), { bitmaps: [null, 'b'] });
});

test('what livedisk does not do is refused by name', () => {
  const unsupported = { kind: 'unsupported' as const };
  refused(
    BlockdevOptions,
    { driver: 'rbd' },
    "Value 'rbd' of parameter 'driver' is not supported by livedisk yet",
    unsupported,
  );
  refused(
    BlockdevOptions,
    { driver: 'qcow2', file: 'f', 'cache-clean-interval': 5 },
    "Parameter 'cache-clean-interval' is not supported by livedisk yet",
    unsupported,
  );
  // A value of a wrong type is that first, as for QEMU.
  refused(
    BlockdevOptions,
    { driver: 'qcow2', file: 'f', 'cache-clean-interval': true },
    "Invalid parameter type for 'cache-clean-interval', expected: integer",
  );
});

test('integers are exact or refused', () => {
  const type = struct('S', { n: optional(int), s: optional(size) });
  const limit = { kind: 'limit' as const };
  const tooLarge = (name: string): string => `Parameter '${name}' is larger than livedisk supports (2^53)`;
  assert.deepEqual(type.parse({ n: -(2 ** 53) + 1, s: 2 ** 53 - 1 }, '', 'qmp'), {
    n: -(2 ** 53) + 1,
    s: 2 ** 53 - 1,
  });
  refused(type, { n: 2n ** 53n }, tooLarge('n'), limit);
  refused(type, { n: -(2n ** 63n) }, tooLarge('n'), limit);
  refused(type, { n: 2n ** 64n - 1n }, "Invalid parameter type for 'n', expected: integer");
  refused(type, { s: 2n ** 64n - 1n }, tooLarge('s'), limit);
  refused(type, { s: -1 }, tooLarge('s'), limit);
  refused(type, { s: 0.5 }, "Parameter 's' expects uint64");
  refused(type, { s: true }, "Parameter 's' expects uint64");
});

test('a uint32 is held to its range, on command lines too', () => {
  const type = struct('S', { u: required(uint32) });
  assert.deepEqual(type.parse({ u: 2 ** 32 - 1 }, '', 'qmp'), { u: 2 ** 32 - 1 });
  assert.deepEqual(type.parse({ u: '0x10' }, '', 'keyval'), { u: 16 });
  for (const u of [-1, 2 ** 32, 2n ** 63n, -(2n ** 63n)])
    refused(type, { u }, "Parameter 'u' expects uint32_t");
  for (const u of [1.5, '3', null, 2n ** 64n]) refused(type, { u }, "Parameter 'u' expects uint64");
  const outer = struct('O', { inner: optional(type), list: optional(arrayOf(uint32)) });
  refused(outer, { inner: { u: -1 } }, "Parameter 'u' expects uint32_t");
  refused(outer, { inner: { u: '1' } }, "Parameter 'inner.u' expects uint64");
  refused(outer, { list: [-1] }, "Parameter 'null' expects uint32_t");
  const keyval = { mode: 'keyval' as const };
  refused(type, { u: '-1' }, "Parameter 'u' expects uint32_t", keyval);
  refused(type, { u: '4294967296' }, "Parameter 'u' expects uint32_t", keyval);
  refused(type, { u: '1.5' }, "Parameter 'u' expects integer", keyval);
});

test('on command lines scalars are strings', () => {
  const keyval = { mode: 'keyval' as const };
  const type = struct('S', {
    n: optional(int),
    s: optional(size),
    b: optional(bool),
    e: optional(enumOf('E', ['x', 'y'])),
    list: optional(arrayOf(struct('T', { event: required(str), n: optional(int) }))),
  });
  const parse = (value: JsonValue): unknown => type.parse(value, '', 'keyval');
  assert.deepEqual(parse({ n: ' +0x10', s: '1.5k', b: 'off', e: 'y' }), { n: 16, s: 1536, b: false, e: 'y' });
  assert.deepEqual(parse({ n: '-010', list: [{ event: 'a', n: '0' }] }), {
    n: -8,
    list: [{ event: 'a', n: 0 }],
  });
  for (const [text, value] of Object.entries({
    on: true,
    yes: true,
    y: true,
    true: true,
    no: false,
    n: false,
  }))
    assert.deepEqual(parse({ b: text }), { b: value });
  for (const n of ['', '1x', '0x', '5 ', '09', '1.5', '9223372036854775808', '9'.repeat(400_000)])
    refused(type, { n }, "Parameter 'n' expects integer", keyval);
  for (const b of ['', 'maybe', 'ON']) refused(type, { b }, "Parameter 'b' expects 'on' or 'off'", keyval);
  refused(type, { s: '1x' }, "Parameter 's' expects a size value", keyval);
  refused(type, { e: 'z' }, "Parameter 'e' does not accept value 'z'", keyval);
  refused(type, { list: [{}] }, "Parameter 'list.0.event' is missing", keyval);
  refused(type, { list: ['5'] }, "Invalid parameter type for 'list.0', expected: object", keyval);
  refused(type, { list: '5' }, "Invalid parameter type for 'list', expected: array", keyval);
  const nested: JsonValue[] = [{ x: '5' }, ['5']];
  for (const value of nested) {
    for (const key of ['n', 's', 'b', 'e'])
      refused(type, { [key]: value }, `Parameters '${key}.*' are unexpected`, keyval);
    refused(type, { list: [{ event: value }] }, "Parameters 'list.0.event.*' are unexpected", keyval);
  }
});

test('names of objects are no members', () => {
  const type = struct('S', { toString: optional(str), x: optional(any) });
  assert.deepEqual(type.parse({}, '', 'qmp'), {});
  refused(type, JSON.parse('{"__proto__": 1}') as JsonValue, "Parameter '__proto__' is unexpected");
  const tagged = union('U', { tag: required(enumOf('T', ['a'])) }, 'tag', {
    a: struct('A', { n: required(int) }),
  });
  assert.deepEqual(tagged.parse({ tag: 'a', n: 3 }, '', 'qmp'), { tag: 'a', n: 3 });
  refused(tagged, { tag: 'constructor' }, "Parameter 'tag' does not accept value 'constructor'");
});

test('every node that is described can be created by its description', () => {
  assert.deepEqual(BlockdevCreateOptions.parse({ driver: 'qcow2', file: 'n', size: 512 }, '', 'qmp'), {
    driver: 'qcow2',
    file: 'n',
    size: 512,
  });
});

test('a number of 8 or 32 bits is refused in the words of QEMU when it is none', () => {
  assert.equal(uint8.parse(255, 'n', 'qmp'), 255);
  for (const value of [-1, 256, 2n ** 60n])
    assert.throws(() => uint8.parse(value, 'n', 'qmp'), { message: "Parameter 'n' expects uint8_t" });
  for (const value of ['1', true])
    assert.throws(() => uint8.parse(value, 'n', 'qmp'), { message: "Parameter 'n' expects uint64" });
  assert.equal(uint32.parse(0, 'n', 'qmp'), 0);
  assert.equal(uint32.parse(2 ** 32 - 1, 'n', 'qmp'), 2 ** 32 - 1);
  assert.equal(uint32.parse('0x10', 'n', 'keyval'), 16);
  for (const value of [-1, 2 ** 32, 2n ** 60n, 2n ** 64n - 1n])
    assert.throws(() => uint32.parse(value, 'n', 'qmp'), { message: "Parameter 'n' expects uint32_t" });
  for (const value of ['1', null, new Number(1.5) as number, 2n ** 64n])
    assert.throws(() => uint32.parse(value, 'n', 'qmp'), { message: "Parameter 'n' expects uint64" });
});
