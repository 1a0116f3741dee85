import assert from 'node:assert/strict';
import { test } from 'node:test';
import { distinguishedName } from './distinguished-name.js';

function der(tag: number, ...content: Buffer[]): Buffer {
  const bytes = Buffer.concat(content);
  const { length } = bytes;
  const size = length < 0x80 ? [length] : [0x82, Math.floor(length / 256), length % 256];
  return Buffer.concat([Buffer.from([tag, ...size]), bytes]);
}
const SEQUENCE = 0x30;
const SET = 0x31;
const UTF8 = 0x0c;

/** OID of an attribute of X.520, and its value. */
function attribute(arc: number, value: string | Buffer, tag = UTF8): Buffer {
  const identifier = der(0x06, Buffer.from([0x55, 0x04, arc]));
  return der(SEQUENCE, identifier, der(tag, Buffer.from(value as string)));
}

function certificate(sets: Buffer[][], hasVersion = true): Buffer {
  const name = der(SEQUENCE, ...sets.map((attributes) => der(SET, ...attributes)));
  const other = der(SEQUENCE, der(SET, attribute(3, 'issuer')));
  const version = hasVersion ? [der(0xa0, der(0x02, Buffer.from([2])))] : [];
  const fields = [der(0x02, Buffer.from([1])), der(SEQUENCE), other, der(SEQUENCE), name, der(SEQUENCE)];
  return der(SEQUENCE, der(SEQUENCE, ...version, ...fields), der(SEQUENCE), der(0x03, Buffer.alloc(200)));
}

test('attributes come in the order of the certificate, with and without a version', () => {
  const sets = [[attribute(6, 'GB')], [attribute(10, 'Org'), attribute(11, 'Unit')], [attribute(3, 'me')]];
  for (const hasVersion of [true, false])
    assert.equal(distinguishedName(certificate(sets, hasVersion)), 'C=GB,O=Org+OU=Unit,CN=me');
  assert.equal(distinguishedName(certificate([])), '');
});

test('what would be read as another name is escaped', () => {
  for (const [value, text] of [
    ['a,CN=b', 'a\\,CN=b'],
    ['a+CN=b', 'a\\+CN=b'],
    ['\\', '\\\\'],
    [' a ', '\\ a\\ '],
    ['#a#', '\\#a#'],
    ['a\0b', 'a\\00b'],
    ['"<>;', '\\"\\<\\>\\;'],
  ] as const)
    assert.equal(distinguishedName(certificate([[attribute(3, value)]])), `CN=${text}`);
});

test('texts of other types are read, and what is no text is told in hexadecimal', () => {
  const utf16 = Buffer.from('\u00e9', 'utf16le').swap16();
  assert.equal(distinguishedName(certificate([[attribute(3, utf16, 0x1e)]])), 'CN=\u00e9');
  assert.equal(distinguishedName(certificate([[attribute(3, utf16.subarray(1), 0x1e)]])), 'CN=#1e01e9');
  assert.equal(distinguishedName(certificate([[attribute(3, Buffer.from([7]), 0x02)]])), 'CN=#020107');
  assert.equal(distinguishedName(certificate([[attribute(45, 'z')]])), '2.5.4.45=#0c017a');
});

test('a certificate that is cut short or changed is refused, or has another name', () => {
  const whole = certificate([[attribute(3, 'me')]]);
  for (let length = 0; length < whole.length; length++)
    assert.throws(() => distinguishedName(whole.subarray(0, length)), { kind: 'corrupt' });
  for (let at = 0; at < whole.length; at++)
    for (const byte of [0, 0x7f, 0x84, 0xff]) {
      const changed = Buffer.from(whole);
      changed[at] = byte;
      try {
        assert.equal(typeof distinguishedName(changed), 'string');
      } catch (error) {
        assert.equal((error as { kind?: string }).kind, 'corrupt', String(error));
      }
    }
});
