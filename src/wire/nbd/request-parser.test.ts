import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BufferPool } from './buffer-pool.js';
import { encodeRequest, type HeaderStyle, requestBytes } from './codec.js';
import { Command } from './constants.js';
import { RequestParser, type RequestTaker } from './request-parser.js';

const nobody = (): never => assert.fail('nothing is taken');

/** Lets every request wait. */
const BUSY: RequestTaker = {
  memoryFor: () => 0,
  mustWait: () => true,
  begin: nobody,
  serve: nobody,
  serveWithPayload: nobody,
  refuse: nobody,
  disconnect: nobody,
  drop: nobody,
};

/** The header of a read of all that may be named. */
function longest(style: HeaderStyle): Buffer {
  const out = Buffer.alloc(requestBytes(style));
  const cookie = { cookieHigh: 2 ** 32 - 1, cookieLow: 2 ** 32 - 2 };
  encodeRequest(out, 0, { command: Command.read, flags: 0, offset: 0, lengthBytes: 0, ...cookie }, style);
  out.fill(0xff, 16);
  return out;
}

for (const style of ['simple', 'structured', 'extended'] as const)
  for (const waits of [false, true])
    test(`another parser gets a request as it came, ${style}, ${waits ? 'one that waits' : 'a part of one'}`, () => {
      const header = longest(style);
      const sent = header.subarray(0, waits ? header.length : -1);
      const parser = new RequestParser(style, new BufferPool((bytes) => Buffer.alloc(bytes)), BUSY);
      assert.equal(parser.take(sent), sent.length);
      assert.equal(parser.isWaiting, waits);
      assert.ok(parser.unfinished().equals(sent));
    });
