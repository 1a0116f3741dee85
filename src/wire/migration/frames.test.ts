import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SeededRandom } from '../../host/simulated-random.js';
import { BlockError } from '../../base/error.js';
import { encodeFrame, type Frame, FrameReader, MAX_PAYLOAD_BYTES, opening } from './frames.js';
import { decodeMessage, encodeMessage } from './messages.js';

function framesOf(bytes: Buffer, random: SeededRandom): Frame[] {
  const reader = new FrameReader();
  const frames: Frame[] = [];
  for (let at = 0; at < bytes.length;) {
    const length = Math.min(1 + random.below(40), bytes.length - at);
    reader.push(Buffer.from(bytes.subarray(at, (at += length))));
    for (let frame = reader.next(); frame; frame = reader.next()) frames.push(frame);
  }
  return frames;
}

const HELLO = encodeMessage('hello', { session: 'a', word: 'b', machine: { type: 'pc' } });
const SECTION = encodeMessage('section', { name: 'state', version: 7, bytes: Buffer.from('bytes') });
const STREAM = Buffer.concat([opening(), encodeFrame(HELLO), encodeFrame(SECTION)]);

test('messages come out as they went in, however they are cut', () => {
  for (let seed = 0; seed < 50; seed++) {
    const [hello, section, ...more] = framesOf(STREAM, new SeededRandom(seed)).map(decodeMessage);
    assert.deepEqual(hello, { name: 'hello', body: { session: 'a', word: 'b', machine: { type: 'pc' } } });
    assert.ok(section?.name === 'section');
    assert.deepEqual(
      [section.body.name, section.body.version, section.body.bytes.toString()],
      ['state', 7, 'bytes'],
    );
    assert.deepEqual(more, []);
  }
});

test('of a stream with a wrong byte nothing is taken that is not as it was sent', () => {
  const random = new SeededRandom(3);
  const good = framesOf(STREAM, random).map(({ type, payload }) => `${type} ${payload.toString('hex')}`);
  for (let at = 0; at < STREAM.length; at++) {
    const bytes = Buffer.from(STREAM);
    bytes.writeUInt8((bytes.readUInt8(at) + 1 + random.below(255)) % 256, at);
    try {
      const frames = framesOf(bytes, random).map(({ type, payload }) => `${type} ${payload.toString('hex')}`);
      assert.ok(frames.length < good.length, `byte ${at}`);
      assert.deepEqual(frames, good.slice(0, frames.length));
    } catch (error) {
      assert.ok(error instanceof BlockError, String(error));
    }
  }
});

test('a frame that would be too large is refused before its bytes come', () => {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(MAX_PAYLOAD_BYTES + 1, 0);
  const reader = new FrameReader();
  reader.push(Buffer.concat([opening(), head]));
  assert.throws(() => reader.next(), { kind: 'corrupt' });
});

test('what is no body of its message is refused', () => {
  const random = new SeededRandom(5);
  const bodies = ['', '{', '[]', 'null', '{"session":1}', '{"a":"b"}', '\xff\xff'];
  for (let type = 0; type <= 20; type++)
    for (const body of bodies) {
      const payload = type === 4 ? random.bytes(random.below(8)) : Buffer.from(body, 'latin1');
      try {
        decodeMessage({ type, payload });
      } catch (error) {
        assert.ok(error instanceof BlockError, String(error));
      }
    }
});
