import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type InetText, parseInet } from './inet-text.js';

const READ: Array<[string, InetText]> = [
  ['h:1', { host: 'h', port: '1' }],
  [':http', { host: '', port: 'http' }],
  ['[::1]:x', { host: '::1', port: 'x' }],
  ['x,y:1', { host: 'x,y', port: '1' }],
  ['h:1,foo=x', { host: 'h', port: '1' }],
  [
    'h:1,to=-5,ipv4,ipv6=off,keep-alive=on',
    { host: 'h', port: '1', to: -5, ipv4: true, ipv6: false, 'keep-alive': true },
  ],
];

const REFUSED: Array<[string, string]> = [
  ['', "error parsing address ''"],
  ['h', "error parsing address 'h'"],
  ['h:', "error parsing address 'h:'"],
  [`${'a'.repeat(65)}:1`, `error parsing address '${'a'.repeat(65)}:1'`],
  [':', "error parsing port in address ':'"],
  ['[::1:5', "error parsing IPv6 address '[::1:5'"],
  ['[]:1', "error parsing IPv6 address '[]:1'"],
  ['h:1,to=5x', 'error parsing to= argument'],
  ['h:1,ipv4=x,ipv6', "error parsing 'ipv4' flag '=x,ipv6'"],
  ['h:1,mptcp=y', "error parsing 'mptcp' flag '=y'"],
];

test('an address in one word is read, or refused, as in QEMU', () => {
  for (const [text, members] of READ) assert.deepEqual(parseInet(text), members, text);
  for (const [text, message] of REFUSED) assert.throws(() => parseInet(text), { message }, text);
});
