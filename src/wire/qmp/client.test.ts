import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { BlockError, type ErrorKind } from '../../base/error.js';
import { RealClock } from '../../host/real-clock.js';
import { createSimulatedHost } from '../../host/simulated.js';
import { required, str, struct } from '../../schema/types.js';
import { PairedSocket } from '../../../test/kit/socket-pair.js';
import { QmpClient } from './client.js';
import { command, CommandRegistry, QmpError } from './registry.js';
import { QmpHub } from './hub.js';
import { QmpSession } from './session.js';

const clock = new RealClock();
const NONE = struct('none', {});

function newHub(): QmpHub {
  const registry = new CommandRegistry();
  registry.register(command('echo', struct('echo', { text: required(str) })), ({ text }) => text);
  registry.register(command('hang', NONE), () => deferred().promise);
  const hub = new QmpHub(registry, clock);
  registry.register(command('job', struct('job', { id: required(str) })), ({ id }) => {
    for (const status of ['created', 'running', 'concluded']) hub.emit('JOB_STATUS_CHANGE', { status, id });
  });
  return hub;
}

async function connected(hub: QmpHub): Promise<{ client: QmpClient; session: QmpSession }> {
  const [ours, theirs] = PairedSocket.pair((chunk) => Math.min(chunk.length, 7));
  const session = new QmpSession(hub, theirs);
  return { client: await QmpClient.over(ours, clock), session };
}

const ofKind =
  (kind: ErrorKind) =>
  (error: unknown): boolean =>
    error instanceof BlockError && error.kind === kind;

/** A server that says `text` first. */
function saying(text: string): PairedSocket {
  const [ours, theirs] = PairedSocket.pair();
  theirs.start({ onData: () => undefined, onClose: () => undefined });
  theirs.write(Buffer.from(text));
  return ours;
}

test('commands, their answers and refusals', async () => {
  const { client } = await connected(newHub());
  assert.deepEqual(client.greeting['capabilities'], ['oob']);
  assert.equal(await client.execute('echo', { text: 'é\n"' }), 'é\n"');
  const many = Array.from({ length: 30 }, (_, i) => client.execute('echo', { text: String(i) }));
  assert.deepEqual(
    await Promise.all(many),
    Array.from({ length: 30 }, (_, i) => String(i)),
  );
  await assert.rejects(
    client.execute('echo'),
    (error) =>
      error instanceof QmpError &&
      error.errorClass === 'GenericError' &&
      error.message === "Parameter 'text' is missing",
  );
  await assert.rejects(
    client.request({ execute: 'nope' }),
    (error) => error instanceof QmpError && error.errorClass === 'CommandNotFound',
  );
  client.close();
});

test('events: listeners, iterators and waiting', async () => {
  const hub = newHub();
  const { client } = await connected(hub);
  const heard: unknown[] = [];
  const stop = client.onEvent(({ event, data }) => void heard.push([event, data['status']]));
  const running = client.waitForEvent(
    'JOB_STATUS_CHANGE',
    ({ id, status }) => id === 'b' && status === 'running',
  );
  const events = client.events();
  await client.execute('job', { id: 'a' });
  stop();
  await client.execute('job', { id: 'b' });
  assert.deepEqual(heard, [
    ['JOB_STATUS_CHANGE', 'created'],
    ['JOB_STATUS_CHANGE', 'running'],
    ['JOB_STATUS_CHANGE', 'concluded'],
  ]);
  assert.deepEqual((await running).data, { status: 'running', id: 'b' });
  assert.equal(typeof (await running).timestamp.seconds, 'number');
  const seen: unknown[] = [];
  for await (const { data } of events) if (seen.push(data['id']) === 6) break;
  assert.deepEqual(seen, ['a', 'a', 'a', 'b', 'b', 'b']);
  assert.deepEqual(await events.next(), { done: true, value: undefined });
  hub.emit('STOP', {});
  client.close();
});

test('the end of the connection ends whatever waits', async () => {
  const { client, session } = await connected(newHub());
  const hanging = client.execute('hang');
  const waiting = client.waitForEvent('STOP');
  const events = client.events();
  session.end();
  await assert.rejects(hanging, ofKind('closed'));
  await assert.rejects(waiting, ofKind('closed'));
  assert.deepEqual(await events.next(), { done: true, value: undefined });
  assert.equal(await client.closed, undefined);
  await assert.rejects(client.execute('echo', { text: '' }), ofKind('closed'));
  await assert.rejects(client.waitForEvent('STOP'), ofKind('closed'));
});

test('close() rejects what is under way', async () => {
  const { client } = await connected(newHub());
  const hanging = client.execute('hang');
  client.close();
  await assert.rejects(hanging, ofKind('closed'));
  await client.closed;
});

test('servers that do not speak QMP', async () => {
  for (const text of ['SSH-2.0-x\r\n', '[1]', '{"return": {}}', '"text"'])
    await assert.rejects(QmpClient.over(saying(text), clock), ofKind('corrupt'), text);
  await assert.rejects(QmpClient.over(saying(''), clock, { timeoutMs: 5 }), ofKind('timeout'));
  // An answer to a question that was not asked.
  const [ours, theirs] = PairedSocket.pair();
  const answers = ['{"return": {}, "id": 1}', '{"return": {}, "id": 7}'];
  theirs.start({
    onData: () => void theirs.write(Buffer.from(answers.shift() ?? '')),
    onClose: () => undefined,
  });
  theirs.write(Buffer.from('{"QMP": {}}'));
  const client = await QmpClient.over(ours, clock);
  await assert.rejects(client.execute('echo'), ofKind('corrupt'));
});

test('by address, on a host', async () => {
  const simulation = createSimulatedHost({ seed: 1 });
  const { host } = simulation;
  await simulation.run(async () => {
    const hub = new QmpHub(newHub().registry, host.clock);
    const address = { type: 'unix' as const, path: '/tmp/qmp' };
    const listener = await host.net.listen(address, (socket) => void new QmpSession(hub, socket));
    const clients = [await QmpClient.connect(host, address), await QmpClient.connect(host, address)];
    for (const client of clients) assert.equal(await client.execute('echo', { text: 'x' }), 'x');
    for (const client of clients) client.close();
    await listener.close();
    await assert.rejects(QmpClient.connect(host, address), BlockError);
  });
});

test('one that goes on with a session hears what came before it, in order, once it looks', async () => {
  const [ours, theirs] = PairedSocket.pair();
  const asked: string[] = [];
  theirs.start({ onData: (chunk) => void asked.push(chunk.toString()), onClose: () => undefined });
  const event = (name: string): string =>
    `{"event": "${name}", "data": {}, "timestamp": {"seconds": 0, "microseconds": 0}}\n`;
  const unseen = Buffer.from(event('FIRST') + event('SECOND').slice(0, 9)).toString('base64');
  theirs.write(Buffer.from(event('SECOND').slice(9) + event('THIRD')));
  const client = QmpClient.adopt(ours, { lastId: 5, unseen });
  const heard: string[] = [];
  client.onEvent(({ event: name }) => void heard.push(name));
  await clock.sleep(5);
  assert.deepEqual(heard, []);
  client.thaw();
  const answer = client.execute('query-status');
  while (asked.length === 0) await clock.sleep(1);
  assert.match(asked.join(''), /"id": 6/);
  theirs.write(Buffer.from('{"return": {}, "id": 6}\n'));
  assert.deepEqual(await answer, {});
  assert.deepEqual(heard, ['FIRST', 'SECOND', 'THIRD']);
});

test('a session that waits for an answer, or cannot be passed, does not go over', async () => {
  const { client } = await connected(newHub());
  assert.equal(client.isBusy, false);
  client.execute('hang').catch(() => undefined);
  assert.equal(client.isBusy, true);
  assert.throws(() => client.passed(), ofKind('busy'));
  const other = (await connected(newHub())).client;
  other.freeze();
  assert.throws(() => other.passed(), ofKind('unsupported'));
  other.thaw();
  assert.equal(await other.execute('echo', { text: 'here' }), 'here');
  for (const one of [client, other]) one.close();
});
