import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspect } from 'node:util';
import fc from 'fast-check';
import { SeededRandom } from '../../host/simulated-random.js';
import type { JsonValue } from '../../schema/types.js';
import { formatJson, formatJsonPretty } from './json-format.js';
import { type JsonLimits, JsonStream, parseJson } from './json-parser.js';

type Outcome = { value: JsonValue } | { error: string };

/** What a stream says about input that comes in these chunks. */
function read(chunks: readonly Uint8Array[], limits?: JsonLimits): Outcome[] {
  const out: Outcome[] = [];
  const stream = new JsonStream(
    (value) => void out.push({ value }),
    (error) => void out.push({ error: error.message }),
    limits,
  );
  for (const chunk of chunks) stream.push(chunk);
  stream.end();
  return out;
}

const bytes = (text: string): Buffer => Buffer.from(text, 'latin1');
const value = (of: JsonValue): Outcome => ({ value: of });
const bad = (message: string): Outcome => ({ error: `JSON parse error, ${message}` });
const noValue = bad('expecting value');
const notSeparated = bad('expected separator in dict');

/** Input, a character a byte, and what QEMU 7.2 answers. */
const TRANSCRIPT: ReadonlyArray<[string, ...Outcome[]]> = [
  ['3 ', value(3)],
  ['"abc"', value('abc')],
  ['[1]', value([1])],
  ['true ', value(true)],
  ['null false ', value(null), value(false)],
  ['3\n4{"a":5}', value(3), value(4), value({ a: 5 })],
  ['{}{} {}', value({}), value({}), value({})],
  ['foo ', bad("invalid keyword 'foo'")],
  ['nullx ', bad("invalid keyword 'nullx'")],
  ['@', bad("stray '@'")],
  ['{"a":1 "b"}', notSeparated],
  ['{"a" 1}', bad('missing : in object pair')],
  ['{"a":1,"b"}', bad('missing : in object pair')],
  ['{"a" "b" "c"}', bad('missing : in object pair')],
  ['{,}', noValue],
  ['{1:2}', bad('key is not a string in object')],
  ['{a:2}', bad("invalid keyword 'a'")],
  ['{"a":1,}', noValue],
  ['[1,]', noValue],
  ['[1 2]', bad('expected separator in list')],
  ['[1,2,,3]', noValue],
  ['}', noValue],
  [']', noValue],
  [',', noValue],
  [':', noValue],
  ['{"a":}', noValue],
  ['{"a":[1,{"b":}]}', noValue],
  ['{"a":1}}', value({ a: 1 }), noValue],
  ['{"a":1}]', value({ a: 1 }), noValue],
  ['[]}', value([]), noValue],
  ['{]', noValue],
  ['[}', noValue],
  ['{[}]', noValue],
  ['[}{]', noValue, noValue],
  ['[}{}]', noValue, value({}), noValue],
  ['{"a":tru}', bad("invalid keyword 'tru'")],
  ['{"a":1,"a":2}', bad('duplicate key')],
  // Recovery skips to a bracket, a separator or a line's end.
  ['@ 3 ', bad("stray '@'")],
  ['@foo{}', bad("stray '@'"), value({})],
  ['@foo bar{}', bad("stray '@'"), value({})],
  ['@foo\tbar\n', bad("stray '@'")],
  ['@foo\rbar\n', bad("stray '@'"), bad("invalid keyword 'bar'")],
  ['@foo"x\n3 ', bad("stray '@'"), value(3)],
  ['@"{}', bad("stray '@'"), value({})],
  ['{"a":truE}', bad("stray 'E'"), noValue],
  ['{"a":tr_ue}', bad("stray '_'"), noValue],
  ['{"a":%d}', bad("stray '%'"), noValue],
  ['\x00/* */{}', bad("stray ''"), value({})],
  ['\x01\x02\x03\n{}', bad("stray '\x01'"), bad("stray '\x02'"), bad("stray '\x03'"), value({})],
  ['\x7f{}', bad("stray '\x7f'"), value({})],
  ['\xe9 {}', bad("stray '\ufffd'"), value({})],
  ['@\xfe\xfd\x7f\xff{}', bad("stray '@'"), bad("stray '\ufffd'"), bad("stray '\ufffd'"), value({})],
  // Strings.
  [`['\\'', '\\"', "'", 'a"b']`, value(["'", '"', "'", 'a"b'])],
  ['"\\u00e9\\ud83d\\ude00\\u007f\\u0001/\\/\\b\\f\\n\\r\\t\\\\"', value('é😀\x7f\x01//\b\f\n\r\t\\')],
  ['"\xc3\xa9\xf0\x9f\x98\x80%d\x7f"', value('é😀%d\x7f')],
  ['"a\\u0000b"', value('a\0b')],
  ['"\xc0\x80"', value('\0')],
  ['{"a":"\\q"}', bad('invalid escape sequence in string')],
  ['{"a":"\\\xc3\xa9"}', bad('invalid escape sequence in string')],
  ['{"a":"x\\ud800y"}', bad('\\ud800 is not a valid Unicode character')],
  ['{"a":"\\ude00"}', bad('\\ude00 is not a valid Unicode character')],
  ['{"a":"\\ud83d\\u0041"}', bad('\\ud83d is not a valid Unicode character')],
  ['{"a":"\\ud83f\\udffe"}', bad('\\ud83f\\udffe is not a valid Unicode character')],
  ['{"a":"\\uFDD0"}', bad('\\uFDD0 is not a valid Unicode character')],
  ['{"a":"\\uffff"}', bad('\\uffff is not a valid Unicode character')],
  ['{"a":"\\u12xyz"}', bad('\\u12xy is not a valid Unicode character')],
  ['{"a":"\\u123"}', bad('\\u123" is not a valid Unicode character')],
  ["{'a':'\\u'}", bad("\\u' is not a valid Unicode character")],
  ['"\xed\xa0\x80"', bad('invalid UTF-8 sequence in string')],
  ['"\xef\xbf\xbf"', bad('invalid UTF-8 sequence in string')],
  ['{"a":"\xc3"}', bad('invalid UTF-8 sequence in string')],
  ['"\xfe\n{}', bad(`stray '"\ufffd'`), value({})],
  ['{"a":"\xc3\xa9\xff"}', bad(`stray '"é\ufffd'`), noValue],
  ['{"a":"abc\ndef"}', bad(`stray '"abc\n'`), noValue],
  ['{"a":"\x01"}', bad(`stray '"\x01'`), noValue],
  ["'1 \n", bad("stray ''1 \n'")],
  // Numbers.
  ['[-0,18446744073709551615,-9223372036854775808]', value([0, 2n ** 64n - 1n, -(2n ** 63n)])],
  ['[0.5,1e-1,1E+2,9007199254740993]', value([0.5, 0.1, parseJson('1E+2'), 2n ** 53n + 1n])],
  ['{"a":01}', bad("stray '01'"), noValue],
  ['{"a":-01}', bad("stray '-01'"), noValue],
  ['{"a":1.}', bad("stray '1.}'")],
  ['{"a":.5}', bad("stray '.'"), noValue],
  ['{"a":-}', bad("stray '-}'")],
  ['{"a":1e}', bad("stray '1e}'")],
  ['{"a":1e+}', bad("stray '1e+}'")],
  ['{"a":+1}', bad("stray '+'"), noValue],
  ['{"a":--1}', bad("stray '--'"), noValue],
  ['{"a":1e5.3}', bad("stray '.'"), noValue],
  ['{"a":0e1}', notSeparated],
  ['{"a":0.0e1}', value({ a: parseJson('0.0') })],
  ['{"a":1x}', notSeparated],
  ['{"a":0x10}', notSeparated],
  ['{"a":1-1}', notSeparated],
  // The end of the input.
  ['', ...[]],
  [' \n', ...[]],
  ['{', bad('premature EOI')],
  ['{"driver":', bad('premature EOI')],
  ['"abc', bad(`stray '"abc'`)],
  ['{"driver":"null-co', bad(`stray '"null-co'`)],
  ['1e', bad("stray '1e'")],
  ['12', value(12)],
  ['true', value(true)],
];

test('values and errors are those of QEMU', () => {
  for (const [input, ...outcomes] of TRANSCRIPT)
    assert.deepEqual(read([bytes(input)]), outcomes, inspect(input));
});

test('where the input is cut does not matter', () => {
  for (const [input, ...outcomes] of TRANSCRIPT) {
    const all = bytes(input);
    for (let at = 1; at < all.length; at++)
      assert.deepEqual(read([all.subarray(0, at), all.subarray(at)]), outcomes, inspect([input, at]));
    assert.deepEqual(read([...all].map((byte) => Uint8Array.of(byte))), outcomes, inspect(input));
  }
});

test('the buffer of a chunk may be reused', () => {
  const out: JsonValue[] = [];
  const stream = new JsonStream(
    (read) => void out.push(read),
    (error) => assert.fail(error),
  );
  const buffer = Buffer.alloc(4);
  for (const piece of ['{"lo', 'ng":', ' "te', 'xt" ', '}   ']) {
    buffer.write(piece, 'latin1');
    stream.push(buffer);
  }
  assert.deepEqual(out, [{ long: 'text' }]);
});

test('members named as properties of objects are plain', () => {
  const read = parseJson('{"__proto__": {"x": 1}, "constructor": 2}');
  assert.deepEqual(Object.entries(read as object), [
    ['__proto__', { x: 1 }],
    ['constructor', 2],
  ]);
  assert.equal(Object.getPrototypeOf(read), Object.prototype);
  assert.equal(formatJson(read), '{"__proto__": {"x": 1}, "constructor": 2}');
});

test('nesting, size and number of words are limited', () => {
  const nested = (depth: number): Buffer => bytes('['.repeat(depth) + ']'.repeat(depth));
  const [deepest, ...none] = read([nested(1024)]);
  assert(deepest !== undefined && 'value' in deepest && none.length === 0);
  assert.deepEqual(read([nested(1025)])[0], { error: 'JSON nesting depth limit exceeded' });
  const limits = { bytes: 20, tokens: 5, depth: 3 };
  assert.deepEqual(read([bytes('"abcdefghijklmnopqr"')], limits), [value('abcdefghijklmnopqr')]);
  const tooLong = { error: 'JSON token size limit exceeded' };
  assert.deepEqual(read([bytes('"abcdefghijklmnopqrs"')], limits), [tooLong]);
  // A word that never ends is dropped, and reading goes on behind it.
  assert.deepEqual(
    read([bytes('"'), bytes('x'.repeat(100)), bytes('x'.repeat(100)), bytes('\n{}')], limits),
    [tooLong, value({})],
  );
  assert.deepEqual(read([bytes('[1,2,3]')], limits), [{ error: 'JSON token count limit exceeded' }, noValue]);
});

test('a long message in small pieces is read in time linear in it', () => {
  const piece = bytes('x'.repeat(1000));
  const out = read([bytes('{"a": "'), ...Array.from({ length: 8000 }, () => piece), bytes('"}')]);
  assert.equal(out.length, 1);
  assert(out[0] && 'value' in out[0]);
  assert.equal((out[0].value as { a: string }).a.length, 8_000_000);
});

/** Integers beyond the safe ones are written as digits, which are read as bigints. */
const exactNumber = fc
  .oneof(fc.maxSafeInteger(), fc.double({ noNaN: true, noDefaultInfinity: true }))
  .filter((number) => !Number.isInteger(number) || Number.isSafeInteger(number) || Math.abs(number) >= 1e21);
const character = fc
  .string({ unit: 'grapheme' })
  .filter((text) => !/\p{Noncharacter_Code_Point}/u.test(text));
const { json } = fc.letrec<{ json: JsonValue }>((tie) => ({
  json: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    fc.constantFrom(null, true, false),
    exactNumber.map((number) => (Object.is(number, -0) ? 0 : number)),
    fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n }),
    character,
    fc.array(tie('json'), { maxLength: 4 }),
    fc.dictionary(character, tie('json'), { maxKeys: 4, noNullPrototype: true }),
  ),
}));

/** Doubles with integral values are kept apart from integers when read; here they are the same. */
function plain(read: JsonValue): unknown {
  if ((read as unknown) instanceof Number) return Number(read);
  if (Array.isArray(read)) return read.map(plain);
  if (typeof read !== 'object' || read === null) return read;
  return Object.fromEntries(Object.entries(read).map(([key, member]) => [key, plain(member)]));
}

test('what is written is read back, in any pieces', () => {
  fc.assert(
    fc.property(json, fc.integer({ min: 1, max: 9 }), fc.boolean(), (written, step, pretty) => {
      const text = pretty ? formatJsonPretty(written) : formatJson(written);
      assert.match(text, /^[\r\n\x20-\x7e]*$/);
      const all = bytes(`${text}\r\n`);
      const chunks = [];
      for (let at = 0; at < all.length; at += step) chunks.push(all.subarray(at, at + step));
      const out = read(chunks);
      assert.equal(out.length, 1);
      assert(out[0] && 'value' in out[0], inspect(out));
      assert.deepEqual(plain(out[0].value), written);
    }),
    { numRuns: 300 },
  );
});

test('random and mutated input neither breaks nor stops the stream', () => {
  const seeds = TRANSCRIPT.map(([input]) => input).concat(
    '{"execute":"query-block","arguments":{"x":[1,2.5,"a"]}}',
  );
  const alphabet = '{}[]:,"\'\\ \n\t0123456789-+.eEtrufalsn\x00\x7f\xc3\xa9\xff@';
  for (let seed = 0; seed < 250; seed++) {
    const random = new SeededRandom(seed);
    let text = seeds[random.below(seeds.length)] ?? '';
    for (let edits = random.below(30); edits > 0; edits--) {
      const at = random.below(text.length + 1);
      const inserted = random.below(3) === 0 ? (seeds[random.below(seeds.length)] ?? '') : '';
      const letter = alphabet[random.below(alphabet.length)] ?? '';
      text = text.slice(0, at) + inserted + letter + text.slice(at + random.below(3));
    }
    const all = bytes(text);
    const whole = read([all]);
    const cut = random.below(all.length + 1);
    assert.deepEqual(
      read([all.subarray(0, cut), all.subarray(cut)]),
      whole,
      `seed ${seed}: ${inspect(text)}`,
    );
    // A line end and brackets enough bring any stream back.
    const after = read([all, bytes(`"'\n${'}]'.repeat(50)}\n{"sane": true}`)]);
    assert.deepEqual(after.at(-1), value({ sane: true }), `seed ${seed}: ${inspect(text)}`);
  }
});

test('output looks like that of QEMU', () => {
  const echo = (text: string): string => formatJson(parseJson(text));
  const numbers: Array<[string, string]> = [
    ['1.0e5', '100000'],
    ['0.1', '0.10000000000000001'],
    ['123456789.123456789', '123456789.12345679'],
    ['1e21', '1e+21'],
    ['1e-7', '9.9999999999999995e-08'],
    ['-1.5e-7', '-1.4999999999999999e-07'],
    ['12345678901234567', '12345678901234567'],
    ['123456789012345678.0', '1.2345678901234568e+17'],
    ['1e16', '10000000000000000'],
    ['1e17', '1e+17'],
    ['0.0001', '0.0001'],
    ['0.00001', '1.0000000000000001e-05'],
    ['1e-320', '9.9998886718268301e-321'],
    ['1e-400', '0'],
    ['-0', '0'],
    ['-0.0', '-0'],
    ['18446744073709551616', '1.8446744073709552e+19'],
    ['-9223372036854775809', '-9.2233720368547758e+18'],
    ['1.0', '1'],
  ];
  for (const [input, output] of numbers) assert.equal(echo(input), output);
  assert.equal(
    echo(`'\\u00e9\\ud83d\\ude00\\u007f\\u0001/"\\n'`),
    '"\\u00E9\\uD83D\\uDE00\\u007F\\u0001/\\"\\n"',
  );
  assert.equal(formatJson('\\u00e9 \\\u00e9'), '"\\\\u00e9 \\\\\\u00E9"');
  assert.equal(echo('[[],{},[1,{"a":null}]]'), '[[], {}, [1, {"a": null}]]');
  assert.equal(formatJson({ a: undefined, b: [true] }), '{"b": [true]}');
  const pretty = formatJsonPretty({ id: [{}, [1, 2], { a: {} }] });
  const lines = [
    '{',
    '    "id": [',
    '        {',
    '        },',
    '        [',
    '            1,',
    '            2',
  ];
  lines.push('        ],', '        {', '            "a": {', '            }', '        }', '    ]', '}');
  assert.equal(pretty.replaceAll('\r\n', '\n'), lines.join('\n'));
});

test('what is written has its separators, and neither members without a value nor lines for nothing', () => {
  const value = {
    a: [1, [], { b: undefined, c: 'é"' }],
    d: {},
    e: { f: [null, 2n, 0.5, new Number(3)] },
    g: undefined,
  };
  assert.equal(
    formatJson(value),
    '{"a": [1, [], {"c": "\\u00E9\\""}], "d": {}, "e": {"f": [null, 2, 0.5, 3]}}',
  );
  assert.equal(
    formatJsonPretty({ a: [1, { b: 'x' }], c: [] }),
    [
      '{',
      '    "a": [',
      '        1,',
      '        {',
      '            "b": "x"',
      '        }',
      '    ],',
      '    "c": [',
      '    ]',
      '}',
    ].join('\r\n'),
  );
  const deep = (levels: number): object => (levels === 0 ? {} : { a: deep(levels - 1) });
  assert.equal(formatJson(deep(1000)).length, 1000 * '{"a": }'.length + 2);
});
