import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import type { Host } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { Session } from '../../src/library/session.js';
import type { JsonObject } from '../../src/schema/types.js';
import { QmpSession } from '../../src/wire/qmp/session.js';
import { HeldClock } from '../kit/held-clock.js';
import { PairedSocket } from '../kit/socket-pair.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** A QMP client with livedisk's extensions. */
class Client {
  readonly socket: PairedSocket;
  #text = '';
  readonly #answers: JsonObject[] = [];
  #wake: () => void = () => undefined;

  private constructor(bed: EngineBed) {
    const [ours, theirs] = PairedSocket.pair();
    this.socket = ours;
    new QmpSession(bed.engine.hub, theirs);
    ours.start({ onData: (chunk) => this.#take(chunk.toString('latin1')), onClose: () => undefined });
  }

  static async connect(bed: EngineBed): Promise<Client> {
    const client = new Client(bed);
    await client.ask('qmp_capabilities', { enable: ['x-livedisk'] });
    return client;
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\r\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) {
      const message = JSON.parse(line) as JsonObject;
      if ('return' in message || 'error' in message) this.#answers.push(message);
    }
    this.#wake();
  }

  async ask(execute: string, args: JsonObject = {}): Promise<JsonObject> {
    this.socket.write(Buffer.from(JSON.stringify({ execute, arguments: args }), 'latin1'));
    for (;;) {
      const answer = this.#answers.shift();
      if (answer) return answer;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  async does(execute: string, args: JsonObject = {}): Promise<void> {
    assert.deepEqual(await this.ask(execute, args), { return: {} }, execute);
  }
}

/** Waits for an event of a session. */
async function sessionEvent(bed: EngineBed, name: string, session: string): Promise<JsonObject> {
  for (;;) {
    const found = bed.events.find(({ event, data }) => event === name && data['session'] === session);
    if (found) return found.data;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function newBed(t: TestContext, properties: { host?: Host } = {}): Promise<EngineBed> {
  const bed = new EngineBed(t, properties);
  await bed.chain('A');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  return bed;
}

const things = async (bed: EngineBed, id: string): Promise<string[]> => {
  const all = await bed.engine.execute('x-session-list');
  const found = all.find((session) => session.id === id);
  assert.ok(found);
  return found.things.map(({ type, name }) => `${type} ${name}`);
};

const nullNode = (name: string): JsonObject => ({ driver: 'null-co', 'node-name': name, size: DISK_BYTES });

test('what a client made is undone when its connection ends, the last thing first, and nothing else is', async (t) => {
  const bed = await newBed(t);
  const client = await Client.connect(bed);
  const other = await Client.connect(bed);
  await client.does('x-session-open', { id: 's' });
  await other.does('block-dirty-bitmap-add', { node: 'A', name: 'other' });
  await client.does('blockdev-add', nullNode('kept'));
  await client.does('blockdev-add', {
    driver: 'copy-before-write',
    'node-name': 'cbw',
    file: 'A',
    target: 'kept',
  });
  await client.does('qom-set', { path: '/machine/peripheral/virtio0', property: 'drive', value: 'cbw' });
  await client.does('blockdev-add', { driver: 'snapshot-access', 'node-name': 'moment', file: 'cbw' });
  await client.does('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'moment' });
  await client.does('block-dirty-bitmap-add', { node: 'A', name: 'b' });
  await client.does('blockdev-add', nullNode('copy'));
  await other.does('blockdev-add', nullNode('others'));
  await other.does('blockdev-backup', {
    'job-id': 'o',
    device: 'moment',
    target: 'others',
    sync: 'full',
    speed: 65536,
  });
  await other.does('job-cancel', { id: 'o' });
  await bed.engine.jobs.find('o')?.concluded;
  await client.does('blockdev-backup', {
    'job-id': 'j',
    device: 'moment',
    target: 'copy',
    sync: 'full',
    speed: 65536,
  });
  await client.does('x-session-leave');
  await client.does('blockdev-add', nullNode('mine-after'));
  assert.deepEqual(await things(bed, 's'), [
    ...['node kept', 'node cbw', 'node moment', 'export e', 'bitmap A/b', 'node copy', 'job j'],
  ]);
  assert.match(JSON.stringify(await other.ask('x-session-enter', { id: 's' })), /another connection's/);
  assert.deepEqual(await bed.layers(), ['A']);
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'cbw');
  client.socket.destroy();
  assert.deepEqual(await sessionEvent(bed, 'X_SESSION_ENDED', 's'), { session: 's', reason: 'client-gone' });
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'A');
  const left = [...bed.engine.graph.nodes.values()].filter(({ monitorOwned }) => monitorOwned);
  assert.deepEqual(left.map(({ name }) => name).sort(), ['A', 'mine-after', 'others']);
  assert.deepEqual(
    bed.engine.graph.node('A').dirtyBitmaps.map(({ name }) => name),
    ['other'],
  );
  assert.deepEqual([bed.engine.exports.list(), bed.engine.jobs.list()], [[], []]);
  assert.ok(!bed.events.some(({ event }) => event === 'X_SESSION_UNDO_FAILED'));
  await bed.guest('write -P 0x55 0 64k');
});

test('what others use is told, and tried again when they have left', async (t) => {
  const bed = await newBed(t);
  const session = await Session.open(bed.engine, 's', {});
  await session.execute('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MiB });
  await bed.execute('block-export-add', { type: 'nbd', id: 'others', 'node-name': 'n' });
  await assert.rejects(session.close(), { kind: 'busy', message: /not undone yet: node 'n': .*in use/ });
  const told = await sessionEvent(bed, 'X_SESSION_UNDO_FAILED', 's');
  assert.deepEqual([told['type'], told['name']], ['node', 'n']);
  assert.equal((await session.info())?.ends, 'closed');
  await assert.rejects(session.renew(), { message: "Session 's' has ended" });
  await bed.execute('block-export-del', { id: 'others' });
  await sessionEvent(bed, 'X_SESSION_ENDED', 's');
  assert.equal(bed.engine.graph.nodes.has('n'), false);
  assert.equal(await session.info(), undefined);
});

test('what a client makes after it closed its session is its own, and others of that session are told', async (t) => {
  const bed = await newBed(t);
  const [client, other] = [await Client.connect(bed), await Client.connect(bed)];
  await client.does('x-session-open', { id: 's', lease: 60 });
  await other.does('x-session-enter', { id: 's' });
  await client.does('x-session-close', { id: 's' });
  await client.does('blockdev-add', nullNode('n'));
  const { error } = await other.ask('blockdev-add', nullNode('m'));
  assert.match((error as JsonObject)['desc'] as string, /^Session 's' has ended/);
  assert.ok('return' in (await other.ask('query-jobs')));
  await other.does('x-session-leave');
  await other.does('blockdev-add', nullNode('m'));
  // Nothing of theirs is undone, at any later time.
  await new Promise((resolve) => setTimeout(resolve, 700));
  assert.deepEqual([bed.engine.graph.nodes.has('n'), bed.engine.graph.nodes.has('m')], [true, true]);
});

test('a lease that nobody renews is over', async (t) => {
  const host = createRealHost();
  const clock = new HeldClock(host.clock, 1000);
  const bed = await newBed(t, { host: { ...host, clock } });
  assert.match(await bed.refusal('x-session-open', { id: 's' }), /needs a lease/);
  assert.match(await bed.refusal('x-session-open', { id: 's', lease: 0 }), /number of seconds/);
  assert.match(await bed.refusal('x-session-open', { id: '7', lease: 1 }), /Invalid session ID/);
  const client = await Client.connect(bed);
  await client.does('x-session-open', { id: 's', lease: 1 });
  assert.equal(await bed.refusal('x-session-open', { id: 's', lease: 1 }), "Session ID 's' already in use");
  const second = await Client.connect(bed);
  await second.does('x-session-enter', { id: 's' });
  client.socket.destroy();
  await second.does('blockdev-add', nullNode('n'));
  clock.pass(999);
  await second.does('x-session-renew', { id: 's' });
  clock.pass(999);
  assert.deepEqual(await things(bed, 's'), ['node n']);
  clock.pass(1);
  assert.deepEqual(await sessionEvent(bed, 'X_SESSION_ENDED', 's'), { session: 's', reason: 'lease-over' });
  assert.equal(bed.engine.graph.nodes.has('n'), false);
});

test('a node that a job brought the guest to is the guest’s, and others may take the names of what is gone', async (t) => {
  const bed = await newBed(t);
  const session = await Session.open(bed.engine, 's', {});
  await session.execute('blockdev-add', { driver: 'null-co', 'node-name': 'T', size: DISK_BYTES });
  await session.execute('block-dirty-bitmap-add', { node: 'A', name: 'b' });
  const job = { 'job-id': 'j', device: 'A', target: 'T', sync: 'full' } as const;
  await session.execute('blockdev-mirror', job);
  await bed.event('BLOCK_JOB_READY', 'j');
  await session.execute('job-complete', { id: 'j' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  assert.deepEqual(await things(bed, 's'), ['bitmap A/b']);
  await session.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T' });
  await bed.execute('block-export-del', { id: 'e' });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T' });
  await bed.execute('block-dirty-bitmap-remove', { node: 'A', name: 'b' });
  await bed.execute('block-dirty-bitmap-add', { node: 'A', name: 'b' });
  await session.close();
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'T');
  assert.deepEqual(
    bed.engine.exports.list().map(({ id }) => id),
    ['e'],
  );
  assert.ok(bed.engine.graph.node('A').findBitmap('b'));
});

for (const [driver, below] of [
  ['raw', 'n'],
  ['copy-on-read', 'A'],
] as const)
  test(`what a guest’s disk is made of stays where others came above it: ${driver}`, async (t) => {
    const bed = await newBed(t);
    const session = await Session.open(bed.engine, 's', {});
    await session.execute('blockdev-add', { driver, 'node-name': 'n', file: 'A' });
    await bed.execute('qom-set', { path: '/machine/peripheral/virtio0', property: 'drive', value: 'n' });
    const overlay = { 'snapshot-file': bed.path('B'), 'snapshot-node-name': 'B' };
    await session.execute('blockdev-snapshot-sync', { 'node-name': 'n', ...overlay });
    await bed.snapshot('B', 'C');
    await session.close();
    assert.deepEqual(await bed.engine.execute('x-session-list'), []);
    assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'C');
    assert.equal(bed.engine.graph.node('B').below?.node.name, below);
    await bed.guest('read -P 0x11 0 4M');
  });

test('a point in time, and a transaction’s parts, go with their session', async (t) => {
  const bed = await newBed(t);
  const session = await Session.open(bed.engine, 's', {});
  await session.execute('x-point-create', {
    name: 'p',
    disks: [{ node: 'virtio0', file: bed.path('B'), 'new-node-name': 'B' }],
  });
  await session.execute('transaction', {
    actions: [{ type: 'block-dirty-bitmap-add', data: { node: 'B', name: 'b' } }],
  });
  assert.deepEqual(await things(bed, 's'), ['point p', 'bitmap B/b']);
  await session.close();
  await sessionEvent(bed, 'X_SESSION_ENDED', 's');
  const { disks } = await bed.engine.execute('x-point-list', {});
  assert.deepEqual(
    disks.flatMap(({ points }) => points),
    [],
  );
});
