import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { HostClock } from '../../host/host.js';
import type { ByteStream } from './byte-stream.js';
import { MoveChannel } from './channel.js';

/** Rings when it is told to. */
class Clock {
  readonly #rings = new Set<{ delayMs: number; ring: () => void }>();

  nowMs(): number {
    return 0;
  }

  setTimer(delayMs: number, ring: () => void): { cancel(): void } {
    const timer = { delayMs, ring };
    this.#rings.add(timer);
    return { cancel: () => void this.#rings.delete(timer) };
  }

  get timers(): number[] {
    return [...this.#rings].map(({ delayMs }) => delayMs);
  }

  ring(ms: number): void {
    for (const timer of this.#rings) if (timer.delayMs <= ms && this.#rings.delete(timer)) timer.ring();
  }
}

/** Takes nothing until it is told to. */
class FullStream implements ByteStream {
  readonly isOneWay: boolean;
  readonly taken = deferred();

  constructor(isOneWay: boolean) {
    this.isOneWay = isOneWay;
  }

  read(): Promise<Buffer | undefined> {
    return new Promise(() => undefined);
  }

  write(): Promise<void> {
    return this.taken.promise;
  }

  finish(): Promise<void> {
    return Promise.resolve();
  }

  destroy(): void {
    this.taken.reject(new BlockError('closed', 'the other end has closed the connection'));
  }
}

function channelTo(isOneWay: boolean): { channel: MoveChannel; clock: Clock; stream: FullStream } {
  const clock = new Clock();
  const stream = new FullStream(isOneWay);
  return { channel: new MoveChannel(stream, clock as unknown as HostClock), clock, stream };
}

test('who takes nothing of what is sent to it for 30 s is given up', async () => {
  const { channel, clock } = channelTo(false);
  const sent = channel.send('described', {});
  clock.ring(29_999);
  const isSent = await Promise.race([sent.then(() => true), Promise.resolve(false)]);
  assert.equal(isSent, false);
  clock.ring(30_000);
  await assert.rejects(sent, { kind: 'timeout', message: 'The other end does not answer' });
});

test('who takes it late is there, and a file may take as long as it wants', async () => {
  const late = channelTo(false);
  const sent = late.channel.send('described', {});
  late.stream.taken.resolve();
  await sent;
  assert.deepEqual(late.clock.timers, []);
  const file = channelTo(true);
  const written = file.channel.send('described', {});
  assert.deepEqual(file.clock.timers, []);
  file.stream.taken.resolve();
  await written;
});
