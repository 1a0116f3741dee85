import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { RealClock } from '../../host/real-clock.js';
import { int, required, struct } from '../../schema/types.js';
import { PairedSocket } from '../../../test/kit/socket-pair.js';
import { command, CommandRegistry } from './registry.js';
import { QmpHub } from './hub.js';
import { QmpSession } from './session.js';

const KiB = 1024;
const MiB = 1024 * KiB;

interface Bed {
  readonly hub: QmpHub;
  /** Commands `answer` that ran. */
  ran: number;
}

/** A hub whose command `answer` answers with so many bytes. */
function newBed(): Bed {
  const registry = new CommandRegistry();
  const bed = { hub: new QmpHub(registry, new RealClock()), ran: 0 };
  registry.register(command('answer', struct('answer', { bytes: required(int) })), ({ bytes }) => {
    bed.ran++;
    return 'x'.repeat(bytes);
  });
  return bed;
}

interface Client {
  readonly socket: PairedSocket;
  received: string;
  isClosed: boolean;
}

function connect({ hub }: Bed): Client {
  const [ours, theirs] = PairedSocket.pair();
  const client: Client = { socket: ours, received: '', isClosed: false };
  new QmpSession(hub, theirs);
  ours.start({
    onData: (chunk) => void (client.received += chunk.toString('latin1')),
    onClose: () => void (client.isClosed = true),
  });
  say(client, '{"execute":"qmp_capabilities"}');
  return client;
}

function say({ socket }: Client, text: string): void {
  socket.write(Buffer.from(text));
}

function answer(bytes: number, id: number): string {
  return JSON.stringify({ execute: 'answer', arguments: { bytes }, id });
}

const turn = (): Promise<void> => new Promise((resolve) => void setImmediate(resolve));

/** Rounds of the event loop until an answer has come. */
async function turnsUntil(client: Client, text: string): Promise<number> {
  for (let count = 0; ; count++) {
    if (client.received.includes(text)) return count;
    assert(count < 10_000, `no ${text}`);
    await turn();
  }
}

test('errors without end of one client leave another its turn', async () => {
  const bed = newBed();
  const [flood, other] = [connect(bed), connect(bed)];
  for (let i = 0; i < 64; i++) say(flood, ','.repeat(64 * KiB));
  const counts: number[] = [];
  for (let id = 0; id < 30; id++) {
    say(other, answer(10, id));
    counts.push(await turnsUntil(other, `"id": ${id}}`));
  }
  assert(Math.max(...counts) <= 12, `rounds: ${counts.join(' ')}`);
  // It had not been looked at to its end meanwhile.
  const errors = flood.received.split('"error"').length;
  assert(errors > 10 && errors < 64 * KiB, `${errors} errors`);
  flood.socket.destroy();
});

test('commands of a client that sends them all at once leave room between them', async () => {
  for (const bytes of [0, 100 * KiB]) {
    const bed = newBed();
    const client = connect(bed);
    await turnsUntil(client, '"return"');
    say(client, answer(bytes, 1).repeat(500));
    let most = 0;
    let ranBefore = 0;
    for (let rounds = 0; bed.ran < 500; rounds++) {
      assert(rounds < 10_000);
      await turn();
      most = Math.max(most, bed.ran - ranBefore);
      ranBefore = bed.ran;
    }
    assert(most <= 3, `${most} commands in a round, of ${bytes} bytes`);
  }
});

test('what a client asked that is gone is not run', async () => {
  const bed = newBed();
  const client = connect(bed);
  await turnsUntil(client, '"return"');
  say(client, answer(100 * KiB, 1).repeat(500));
  while (bed.ran < 5) await turn();
  client.socket.destroy();
  const { ran } = bed;
  for (let count = 0; count < 100; count++) await turn();
  assert(bed.ran <= ran + 2, `${bed.ran - ran} more`);
});

test('many clients in turn: none waits for the whole of another', async () => {
  const bed = newBed();
  const clients = Array.from({ length: 20 }, () => connect(bed));
  for (const client of clients) await turnsUntil(client, '"return"');
  for (const client of clients) for (let id = 1; id <= 20; id++) say(client, answer(KiB, id));
  await turnsUntil(clients[7] ?? assert.fail(), '"id": 10}');
  for (const { received } of clients) {
    const answers = received.split('"id"').length - 1;
    assert(answers >= 8 && answers <= 12, `${answers} answers`);
  }
});

test('of clients that do not read, the one farthest behind goes, and only that', async () => {
  const bed = newBed();
  const [near, far] = [connect(bed), connect(bed)];
  for (const client of [near, far]) await turnsUntil(client, '"return"');
  far.socket.pause();
  const data = { text: 'x'.repeat(4 * MiB) };
  for (let i = 0; i < 4; i++) bed.hub.emit('STOP', data);
  for (let count = 0; count < 10; count++) await turn();
  near.socket.pause();
  for (let i = 0; i < 9; i++) bed.hub.emit('STOP', data);
  far.socket.resume();
  near.socket.resume();
  for (let count = 0; count < 50 && !far.isClosed; count++) await turn();
  assert.equal(far.isClosed, true);
  for (let count = 0; count < 50; count++) await turn();
  assert.equal(near.isClosed, false);
  assert.equal(near.received.split('STOP').length - 1, 13);
});

test('messages that do not end share the memory: the longest one is given up', async () => {
  const bed = newBed();
  const [small, ...large] = Array.from({ length: 7 }, () => connect(bed));
  assert(small);
  await turnsUntil(small, '"return"');
  say(small, '{"execute":"answer",');
  for (const client of large) {
    say(client, '{"a":"');
    for (let i = 0; i < 60; i++) say(client, 'x'.repeat(MiB));
  }
  const failed = (): number =>
    large.filter(({ received }) => received.includes('JSON token size limit exceeded')).length;
  while (failed() < 2) await turn();
  for (let count = 0; count < 100; count++) await turn();
  assert.equal(failed(), 2);
  say(small, '"arguments":{"bytes":1},"id":1}');
  await turnsUntil(small, '"id": 1}');
});

test('a flood out of band from one that does not read is not answered without end, and goes on when it reads', async () => {
  const bed = newBed();
  const [ours, theirs] = PairedSocket.pair();
  const client: Client = { socket: ours, received: '', isClosed: false };
  new QmpSession(bed.hub, theirs);
  ours.start({
    onData: (chunk) => void (client.received += chunk.toString('latin1')),
    onClose: () => undefined,
  });
  say(client, '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}');
  await turnsUntil(client, '"return"');
  ours.pause();
  const messages = 20_000;
  for (let i = 0; i < 100; i++) say(client, '{"exec-oob":"a"}'.repeat(messages / 100));
  let mostBytes = 0;
  for (let count = 0; count < 300; count++) {
    await turn();
    mostBytes = Math.max(mostBytes, theirs.queuedBytes);
  }
  assert(mostBytes < 1.3 * MiB, `${mostBytes} bytes of answers wait`);
  ours.resume();
  const answers = (): number => client.received.split('"error"').length - 1;
  for (let count = 0; answers() < messages; count++) {
    assert(count < 100_000, `${answers()} answers`);
    for (let i = 0; i < 100; i++) await turn();
  }
  say(client, answer(10, 7));
  await turnsUntil(client, '"id": 7}');
});

test('what comes out of band is done while a command waits, after the program was not passed on', async () => {
  const bed = newBed();
  const waiting = deferred();
  let isEnded = false;
  bed.hub.registry.register(command('wait', struct('wait', {})), () => waiting.promise.then(() => ({})));
  const end = { ...command('end', struct('end', {})), outOfBand: true };
  bed.hub.registry.register(end, () => {
    isEnded = true;
    waiting.resolve();
    return {};
  });
  const [ours, theirs] = PairedSocket.pair();
  const client: Client = { socket: ours, received: '', isClosed: false };
  const session = new QmpSession(bed.hub, theirs);
  ours.start({
    onData: (chunk) => void (client.received += chunk.toString('latin1')),
    onClose: () => undefined,
  });
  say(client, '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}');
  await turnsUntil(client, '"return"');
  say(client, '{"execute":"wait","id":1}');
  for (let count = 0; count < 5; count++) await turn();
  session.freeze();
  say(client, '{"exec-oob":"end","id":2}');
  for (let count = 0; count < 5; count++) await turn();
  assert.equal(isEnded, false);
  session.thaw();
  await turnsUntil(client, '"id": 1}');
  assert.equal(isEnded, true);
});
