import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { BlockError } from '../../base/error.js';
import { BlockdevOptions } from '../../schema/block-types.js';
import type { JsonValue } from '../../schema/types.js';
import { isJsonOption, parseKeyval } from './keyval.js';

function refused(text: string, message: string, implicitKey: string | undefined = 'driver'): void {
  assert.throws(
    () => parseKeyval(text, implicitKey),
    (error) => error instanceof BlockError && error.kind === 'invalid' && error.message === message,
    `${text}: ${message}`,
  );
}

test('dots nest, digits make lists, doubled commas are commas', () => {
  assert.deepEqual(
    parseKeyval(
      'driver=qcow2,file.driver=file,file.filename=a,,b.img,read-only=on,backing.file.filename=x=y,,,n=',
    ),
    {
      driver: 'qcow2',
      file: { driver: 'file', filename: 'a,b.img' },
      'read-only': 'on',
      backing: { file: { filename: 'x=y,' } },
      n: '',
    },
  );
  assert.deepEqual(parseKeyval('x.1.y=b,x.0.y=a,x.0.z.0=c'), { x: [{ y: 'a', z: ['c'] }, { y: 'b' }] });
  assert.deepEqual(parseKeyval('__org.example_x.y=3'), { '__org.example_x': { y: '3' } });
});

test('the last of equal keys counts, empty text is empty, a trailing comma is none', () => {
  assert.deepEqual(parseKeyval('a=1,a=2,'), { a: '2' });
  assert.deepEqual(parseKeyval(''), {});
});

test('a first parameter without = is the value of the implicit key', () => {
  assert.deepEqual(parseKeyval('nbd,id=x', 'type'), { type: 'nbd', id: 'x' });
  assert.deepEqual(parseKeyval('type=nbd,id=x', 'type'), { type: 'nbd', id: 'x' });
  refused('null-co,,x', "Invalid parameter ''");
  refused(',node-name=a', "Invalid parameter ''");
  assert.throws(() => parseKeyval('nbd'), { message: "Expected '=' after parameter 'nbd'" });
});

test('JSON keeps its types', () => {
  assert.equal(isJsonOption('{}'), true);
  assert.deepEqual(parseKeyval('{"driver": "null-co", "size": 4, "cache": {"direct": true}}'), {
    driver: 'null-co',
    size: 4,
    cache: { direct: true },
  });
  refused('{', 'JSON parse error, premature EOI');
  refused('{"driver":', 'JSON parse error, premature EOI');
  refused('{"driver":"null-co"} 3', 'Expecting at most one JSON value');
  refused('{"driver":"null-co"}}', 'Expecting at most one JSON value');
  refused('{"driver":"null-co"},', 'Expecting at most one JSON value');
  refused('{"driver" "null-co"}', 'JSON parse error, missing : in object pair');
  refused('{"driver":"null-co', `JSON parse error, stray '"null-co'`);
  refused('{driver:"null-co"}', "JSON parse error, invalid keyword 'driver'");
});

test("mistakes are told in qemu-storage-daemon's words", () => {
  refused('driver=null-co,foo', "Expected '=' after parameter 'foo'");
  refused('driver=a,b,,c=4', "Expected '=' after parameter 'b'");
  refused('driver=a,-b', "Invalid parameter '-b'");
  refused('=x', "Invalid parameter ''");
  refused('driver=null-co,=x', "Invalid parameter ''");
  refused('a..b=1', "Invalid parameter 'a..b'");
  refused('a.b=1,a=2', "Parameters 'a.*' used inconsistently");
  refused('a=2,a.b=1', "Parameters 'a.*' used inconsistently");
  refused('x.b.c=3,x.b=4', "Parameters 'x.b.*' used inconsistently");
  refused('x.0=a,x.2=b', "Parameter 'x.1' missing");
  refused('x.0=1,x.1.0=2,x.1.2=4', "Parameter 'x.1.1' missing");
  refused('x.99999999999=3', "Parameter 'x.0' missing");
  refused('x.0=a,x.foo=b', "Parameters 'x.*' used inconsistently");
  for (const key of ['1x', '_x', '.x', 'x.', '0', 'nö', 'c:d', 'x.1a', '__com.foo.z', '__ab_', '__a_1']) {
    refused(`a=1,${key}=3`, `Invalid parameter '${key}'`);
  }
  refused('a=1,help', 'Help is not available for this option');
  refused('?', 'Help is not available for this option');
  refused('a=1,help,foo', "Expected '=' after parameter 'foo'");
  refused('help,1x=3', "Invalid parameter '1x'");
});

test('parts of keys have at most 127 bytes', () => {
  const longest = 'a'.repeat(127);
  assert.deepEqual(parseKeyval(`${longest}.b=1`), { [longest]: { b: '1' } });
  refused(`${longest}a=1`, `Parameter '${longest}a' is too long`);
  const nested = (depth: number): string => `a${'.b'.repeat(depth - 1)}=1`;
  parseKeyval(nested(1024));
  for (const depth of [1025, 100_000]) refused(nested(depth), "Parameter 'a' is nested too deeply");
  refused(`b.${longest}a=1`, `Parameter fragment '${longest}a' is too long`);
});

test('what is written as an option string is read back', () => {
  const name = fc.stringMatching(/^[a-z][a-z0-9_-]{0,8}$/).filter((key) => key !== '__proto__');
  const { value } = fc.letrec<{ value: JsonValue; nested: JsonValue }>((tie) => ({
    value: fc.oneof({ maxDepth: 3, withCrossShrink: true }, fc.string({ unit: 'grapheme' }), tie('nested')),
    nested: fc.oneof(
      fc.array(tie('value'), { minLength: 1, maxLength: 3 }),
      fc.dictionary(name, tie('value'), {
        minKeys: 1,
        maxKeys: 3,
        noNullPrototype: true,
      }),
    ),
  }));
  const object = fc.dictionary(name, value, { minKeys: 1, maxKeys: 4, noNullPrototype: true });
  fc.assert(
    fc.property(object, (options) => assert.deepEqual(parseKeyval(write(options, '').join(',')), options)),
    { numRuns: 300 },
  );
});

function write(value: JsonValue, path: string): string[] {
  if (typeof value === 'string') return [`${path}=${value.replaceAll(',', ',,')}`];
  assert(typeof value === 'object' && value !== null);
  return Object.entries(value).flatMap(([key, member]) =>
    write(member, path === '' ? key : `${path}.${key}`),
  );
}

test('any text is read or refused as invalid', () => {
  const text = fc.oneof(fc.string(), fc.stringMatching(/^[a-z0-9.,=_{}"-]{0,40}$/));
  fc.assert(
    fc.property(text, (option) => {
      try {
        assert.equal(typeof parseKeyval(option, 'driver'), 'object');
      } catch (error) {
        assert(error instanceof BlockError && ['invalid', 'limit'].includes(error.kind), String(error));
      }
    }),
  );
});

test('the schema takes the strings of option strings', () => {
  const parse = (text: string): unknown => BlockdevOptions.parse(parseKeyval(text, 'driver'), '', 'keyval');
  assert.deepEqual(
    parse('raw,node-name=r,offset=0x200,file.driver=file,file.filename=/x,read-only=on,cache.direct=no'),
    {
      driver: 'raw',
      'node-name': 'r',
      offset: 512,
      file: { driver: 'file', filename: '/x' },
      'read-only': true,
      cache: { direct: false },
    },
  );
  assert.deepEqual(parse('driver=blkdebug,image=node,inject-error.0.event=read_aio,inject-error.0.once=on'), {
    driver: 'blkdebug',
    image: 'node',
    'inject-error': [{ event: 'read_aio', once: true }],
  });
});
