import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KiB } from '../../base/limits.js';
import type { HostSocket } from '../../host/host.js';
import { BufferPool } from './buffer-pool.js';
import { REPLY_BUFFER_BYTES, ReplyStream } from './reply-stream.js';

/** A peer that reads only when told. */
class SlowSocket implements HostSocket {
  readonly #queue: Uint8Array[] = [];
  readonly received: Buffer[] = [];

  write(buffer: Uint8Array): 'sent' | 'queued' {
    this.#queue.push(buffer);
    return 'queued';
  }

  get queuedBytes(): number {
    return this.#queue.reduce((sum, { length }) => sum + length, 0);
  }

  /** The peer takes the oldest buffers; they are looked at only now. */
  takeOldest(count: number): void {
    for (const buffer of this.#queue.splice(0, count)) this.received.push(Buffer.from(buffer));
  }

  start(): void {}
  pause(): void {}
  resume(): void {}
  end(): void {}
  isPeerGone(): boolean {
    return false;
  }

  shutDown(): Promise<void> {
    throw new Error('not by this test');
  }

  destroy(): void {}
}

class CountingPool extends BufferPool {
  out = 0;
  mostOut = 0;

  override take(lengthBytes: number): Buffer {
    this.out++;
    this.mostOut = Math.max(this.mostOut, this.out);
    return super.take(lengthBytes);
  }

  override give(buffer: Buffer): void {
    this.out--;
    super.give(buffer);
  }
}

test('what is sent arrives unchanged, whenever the peer takes it', () => {
  const step = fc.record({
    lengthBytes: fc.constantFrom(16, 4 * KiB, 100 * KiB, REPLY_BUFFER_BYTES + 1),
    flush: fc.boolean(),
    takes: fc.nat(3),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const socket = new SlowSocket();
      const pool = new CountingPool((bytes) => Buffer.alloc(bytes));
      const stream = new ReplyStream(socket, pool);
      steps.forEach(({ lengthBytes, flush, takes }, i) => {
        if (lengthBytes > REPLY_BUFFER_BYTES) stream.sendCopy(Buffer.alloc(lengthBytes, i));
        else {
          const at = stream.reserve(lengthBytes);
          stream.buffer.fill(i, at, at + lengthBytes);
          stream.commit(lengthBytes);
        }
        if (flush) stream.flush();
        socket.takeOldest(takes);
        if (socket.queuedBytes === 0) stream.drained();
      });
      stream.flush();
      socket.takeOldest(Infinity);
      stream.drained();
      const expected = steps.map(({ lengthBytes }, i) => Buffer.alloc(lengthBytes, i));
      assert.ok(Buffer.concat(socket.received).equals(Buffer.concat(expected)));
      assert.equal(pool.out, 1);
    }),
    { numRuns: 60 },
  );
});

test('a peer that always has something to take does not make the buffers pile up', () => {
  const socket = new SlowSocket();
  const pool = new CountingPool((bytes) => Buffer.alloc(bytes));
  const stream = new ReplyStream(socket, pool);
  for (let i = 0; i < 500; i++) {
    stream.sendCopy(Buffer.alloc(300 * KiB));
    const at = stream.reserve(100 * KiB);
    assert.ok(at + 100 * KiB <= stream.buffer.length);
    stream.commit(100 * KiB);
    stream.flush();
    if (i > 2) socket.takeOldest(2);
    assert.ok(socket.queuedBytes > 0);
  }
  assert.ok(pool.mostOut <= 12, `${pool.mostOut} buffers`);
});

test('a stream whose socket is gone takes as many replies as there are, though the socket still tells of queued ones', () => {
  const socket = new SlowSocket();
  const pool = new CountingPool((bytes) => Buffer.alloc(bytes));
  const stream = new ReplyStream(socket, pool);
  const reply = (lengthBytes: number): void => {
    const at = stream.reserve(lengthBytes);
    stream.buffer.fill(1, at, at + lengthBytes);
    stream.commit(lengthBytes);
  };
  reply(REPLY_BUFFER_BYTES - 16);
  stream.flush();
  stream.close();
  const { queuedBytes } = socket;
  for (let i = 0; i < 3; i++) for (const lengthBytes of [512, REPLY_BUFFER_BYTES, 16]) reply(lengthBytes);
  stream.flush();
  stream.drained();
  assert.equal(socket.queuedBytes, queuedBytes, 'nothing more is sent');
  assert.deepEqual([pool.takenBytes, pool.mostOut], [0, 1]);
});
