import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { RealClock } from '../../host/real-clock.js';
import { SeededRandom } from '../../host/simulated-random.js';
import { extension, int, optional, required, str, struct } from '../../schema/types.js';
import { PairedSocket } from '../../../test/kit/socket-pair.js';
import { queryQmpSchema } from './introspect.js';
import { command, CommandRegistry, QmpError } from './registry.js';
import { QmpHub } from './hub.js';
import { QmpSession } from './session.js';
import { VERSION } from './version.js';

const NONE = struct('none', {});

interface Gate {
  /** Lets the commands `wait` that run now or later end. */
  open(): void;
  /** Arguments of the commands that ran, in order. */
  readonly ran: number[];
}

function newHub(): { hub: QmpHub; gate: Gate; unexpected: unknown[] } {
  const registry = new CommandRegistry();
  const opened = deferred();
  const ran: number[] = [];
  registry.register(command('wait', struct('wait', { n: required(int) })), async ({ n }) => {
    ran.push(n);
    await opened.promise;
  });
  registry.register(command('echo', struct('echo', { text: required(str) })), ({ text }) => text);
  registry.register(command('log', struct('log', { n: required(int) })), ({ n }) => void ran.push(n));
  registry.register(command('big', struct('big', { bytes: required(int) })), ({ bytes }) =>
    'x'.repeat(bytes),
  );
  registry.register(command('refuse', NONE), () => {
    throw new BlockError('device-not-found', "Device 'x' not found");
  });
  registry.register(command('inactive', NONE), () => {
    throw new QmpError('DeviceNotActive', 'not active');
  });
  registry.register(command('bug', NONE), () => {
    throw new TypeError('a bug');
  });
  const hub = new QmpHub(registry, new RealClock());
  const unexpected: unknown[] = [];
  hub.onUnexpectedError = (error) => void unexpected.push(error);
  registry.register(command('announce', NONE), () => hub.emit('STOP', {}));
  return { hub, gate: { open: () => opened.resolve(), ran }, unexpected };
}

/** The raw other end of a session. */
class Peer {
  readonly socket: PairedSocket;
  readonly session: QmpSession;
  #lines: string[] = [];
  #text = '';
  #wake = deferred();

  constructor(hub: QmpHub, options: { pretty?: boolean; onClose?: () => void } = {}) {
    const [ours, theirs] = PairedSocket.pair();
    this.socket = ours;
    this.session = new QmpSession(hub, theirs, options);
    ours.start({
      onData: (chunk) => {
        this.#text += chunk.toString('latin1');
        const lines = this.#text.split('\r\n');
        this.#text = lines.pop() ?? '';
        this.#lines.push(...lines);
        this.#wake.resolve();
      },
      onClose: () => undefined,
    });
  }

  static async negotiated(hub: QmpHub, ...enable: string[]): Promise<Peer> {
    const peer = new Peer(hub);
    await peer.line();
    assert.equal(await peer.ask({ execute: 'qmp_capabilities', arguments: { enable } }), '{"return": {}}');
    return peer;
  }

  send(...messages: Array<object | string>): void {
    const text = messages.map((message) => (typeof message === 'string' ? message : JSON.stringify(message)));
    this.socket.write(Buffer.from(text.join('\n'), 'latin1'));
  }

  async line(): Promise<string> {
    while (this.#lines.length === 0) {
      this.#wake = deferred();
      await this.#wake.promise;
    }
    return this.#lines.shift() ?? '';
  }

  async lines(count: number): Promise<string[]> {
    const lines: string[] = [];
    while (lines.length < count) lines.push(await this.line());
    return lines;
  }

  ask(message: object | string): Promise<string> {
    this.send(message);
    return this.line();
  }
}

async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

const failure = (desc: string, errorClass = 'GenericError'): string =>
  `{"error": {"class": "${errorClass}", "desc": "${desc}"}}`;
const EXPECTING = "Expecting capabilities negotiation with 'qmp_capabilities'";

test('greets, and knows one command before the negotiation', async () => {
  const { hub } = newHub();
  const peer = new Peer(hub);
  const { micro, minor, major } = VERSION.qemu;
  const version = `{"qemu": {"micro": ${micro}, "minor": ${minor}, "major": ${major}}, "package": "${VERSION.package}"}`;
  assert.equal(await peer.line(), `{"QMP": {"version": ${version}, "capabilities": ["oob"]}}`);
  const answers: Array<[string, string]> = [
    [`{'execute':'echo'}`, failure(EXPECTING, 'CommandNotFound')],
    ['{"execute":"nope"}', failure(EXPECTING, 'CommandNotFound')],
    ['{"exec-oob":"qmp_capabilities"}', failure("QMP input member 'exec-oob' is unexpected")],
    [
      '{"execute":"qmp_capabilities","arguments":{"enable":["oob","foo"]}}',
      failure("Parameter 'null' does not accept value 'foo'"),
    ],
    [
      '{"execute":"qmp_capabilities","arguments":{"enable":"oob"}}',
      failure("Invalid parameter type for 'enable', expected: array"),
    ],
    [
      '{"execute":"qmp_capabilities","arguments":{"enable":[3]}}',
      failure("Invalid parameter type for 'enable[0]', expected: string"),
    ],
    ['{"execute":"qmp_capabilities","arguments":{"x":1}}', failure("Parameter 'x' is unexpected")],
    ['{"execute":"qmp_capabilities","id":[1,{"b":2}]}', '{"return": {}, "id": [1, {"b": 2}]}'],
    [
      '{"execute":"qmp_capabilities"}',
      failure('Capabilities negotiation is already complete, command ignored', 'CommandNotFound'),
    ],
  ];
  for (const [message, answer] of answers) assert.equal(await peer.ask(message), answer, message);
});

test('answers carry the id, and refusals their class', async () => {
  const { hub, unexpected } = newHub();
  const peer = await Peer.negotiated(hub);
  const answers: Array<[string, string]> = [
    ['{"execute":"echo","arguments":{"text":"\\u00e9"},"id":"7"}', '{"return": "\\u00E9", "id": "7"}'],
    ['{"execute":"echo","id":null}', `{"id": null, ${failure("Parameter 'text' is missing").slice(1)}`],
    ['{"execute":"nope"}', failure('The command nope has not been found', 'CommandNotFound')],
    ['{"execute":"toString"}', failure('The command toString has not been found', 'CommandNotFound')],
    [
      '{"execute":"echo","arguments":{"text":1}}',
      failure("Invalid parameter type for 'text', expected: string"),
    ],
    ['{"execute":"refuse"}', failure("Device 'x' not found", 'DeviceNotFound')],
    ['{"execute":"inactive"}', failure('not active', 'DeviceNotActive')],
    ['{"execute":"echo","x":3}', failure("QMP input member 'x' is unexpected")],
    ['{"execute":7}', failure("QMP input member 'execute' must be a string")],
    ['{}', failure("QMP input lacks member 'execute'")],
    ['{"execute":"echo","arguments":[]}', failure("QMP input member 'arguments' must be an object")],
    ['[1]', failure('QMP input must be a JSON object')],
    ['{"a" 1}', failure('JSON parse error, missing : in object pair')],
    ['{"exec-oob":"echo"}', failure("QMP input member 'exec-oob' is unexpected")],
  ];
  for (const [message, answer] of answers) assert.equal(await peer.ask(message), answer, message);
  assert.deepEqual(unexpected, []);
  assert.equal(await peer.ask('{"execute":"bug"}'), failure('a bug'));
  assert.equal(String(unexpected[0]), 'TypeError: a bug');
});

test('out-of-band commands must be negotiated, and do not wait', async () => {
  const { hub, gate } = newHub();
  const peer = await Peer.negotiated(hub, 'oob');
  const id = (text: string): string => `{"id": 1, ${text.slice(1)}`;
  peer.send({ execute: 'wait', arguments: { n: 1 } });
  const answers: Array<[string, string]> = [
    ['{"exec-oob":"echo","id":1}', id(failure('The command echo does not support OOB'))],
    [
      '{"exec-oob":"qmp_capabilities","id":1}',
      id(failure('The command qmp_capabilities does not support OOB')),
    ],
    ['{"exec-oob":"nope","id":1}', id(failure('The command nope has not been found', 'CommandNotFound'))],
  ];
  for (const [message, answer] of answers) assert.equal(await peer.ask(message), answer, message);
  gate.open();
  assert.equal(await peer.line(), '{"return": {}}');
  const clash = failure("QMP input member 'execute' clashes with 'exec-oob'");
  assert.equal(await peer.ask('{"exec-oob":"x","execute":"echo"}'), clash);
});

test('commands of all clients run one at a time, in their order', async () => {
  const { hub, gate } = newHub();
  const [a, b] = [await Peer.negotiated(hub), await Peer.negotiated(hub)];
  const log = (n: number): object => ({ execute: 'log', arguments: { n }, id: n });
  a.send({ execute: 'wait', arguments: { n: 0 } }, log(1), log(2));
  await turns();
  b.send(log(10), '{"a" 1}', log(11));
  await turns();
  assert.deepEqual(gate.ran, [0]);
  gate.open();
  assert.deepEqual(await a.lines(3), [
    '{"return": {}}',
    '{"return": {}, "id": 1}',
    '{"return": {}, "id": 2}',
  ]);
  const parseError = failure('JSON parse error, missing : in object pair');
  assert.deepEqual(await b.lines(3), ['{"return": {}, "id": 10}', parseError, '{"return": {}, "id": 11}']);
  const ofOne = (client: (n: number) => boolean): number[] => gate.ran.filter(client);
  assert.deepEqual(
    ofOne((n) => n < 10),
    [0, 1, 2],
  );
  assert.deepEqual(
    ofOne((n) => n >= 10),
    [10, 11],
  );
});

test('a client whose commands wait is not read', async () => {
  const { hub, gate } = newHub();
  const [ours, theirs] = PairedSocket.pair();
  new QmpSession(hub, theirs);
  let text = '';
  ours.start({ onData: (chunk) => void (text += chunk.toString()), onClose: () => undefined });
  const say = (message: object): void => void ours.write(Buffer.from(JSON.stringify(message)));
  say({ execute: 'qmp_capabilities' });
  say({ execute: 'wait', arguments: { n: 0 } });
  for (let n = 1; n <= 30; n++) say({ execute: 'log', arguments: { n }, id: n });
  await turns(60);
  assert.equal(theirs.isPaused, true);
  assert(ours.queuedBytes > 0);
  assert.deepEqual(gate.ran, [0]);
  gate.open();
  while (!text.includes('"id": 30')) await turns(1);
  assert.equal(theirs.isPaused, false);
  assert.deepEqual(
    gate.ran,
    Array.from({ length: 31 }, (_, n) => n),
  );
});

test('a client that reads nothing gets no further commands run', async () => {
  const { hub, gate } = newHub();
  const peer = await Peer.negotiated(hub);
  peer.socket.pause();
  peer.send({ execute: 'big', arguments: { bytes: 2 ** 21 } }, { execute: 'log', arguments: { n: 1 } });
  await turns();
  assert.deepEqual(gate.ran, []);
  peer.socket.resume();
  const [big = '', small] = await peer.lines(2);
  assert.equal(big.length, 2 ** 21 + '{"return": ""}'.length);
  assert.equal(small, '{"return": {}}');
  assert.deepEqual(gate.ran, [1]);
});

test('a client that lets events pile up is cut off', async () => {
  const { hub } = newHub();
  let closed = false;
  const peer = new Peer(hub, { onClose: () => void (closed = true) });
  await peer.line();
  await peer.ask({ execute: 'qmp_capabilities' });
  peer.socket.pause();
  const text = 'x'.repeat(2 ** 23);
  for (let i = 0; i < 8; i++) hub.emit('BLOCK_IO_ERROR', { text });
  assert.equal(closed, true);
  hub.emit('STOP', {});
});

test('events go to every client that has negotiated, before the answer of the command', async () => {
  const { hub } = newHub();
  const [a, b] = [await Peer.negotiated(hub), await Peer.negotiated(hub)];
  const silent = new Peer(hub);
  await silent.line();
  a.send({ execute: 'announce', id: 1 });
  const [event = '', answer] = await a.lines(2);
  assert.match(event, /^\{"timestamp": \{"seconds": \d+, "microseconds": \d+\}, "event": "STOP"\}$/);
  assert.equal(answer, '{"return": {}, "id": 1}');
  assert.equal(await b.line(), event);
  hub.emit('JOB_STATUS_CHANGE', { status: 'running', id: 'j' });
  assert.match(
    await b.line(),
    /, "event": "JOB_STATUS_CHANGE", "data": \{"status": "running", "id": "j"\}\}$/,
  );
  assert.equal(await silent.ask('{}'), failure("QMP input lacks member 'execute'"));
});

test('a client may go while its command runs', async () => {
  const { hub, gate, unexpected } = newHub();
  let closed = 0;
  const peer = new Peer(hub, { onClose: () => void closed++ });
  await peer.line();
  await peer.ask({ execute: 'qmp_capabilities' });
  const other = await Peer.negotiated(hub);
  peer.send({ execute: 'wait', arguments: { n: 0 } }, { execute: 'log', arguments: { n: 1 } });
  await turns();
  peer.socket.end();
  await turns();
  assert.equal(closed, 1);
  gate.open();
  assert.equal(await other.ask({ execute: 'log', arguments: { n: 2 } }), '{"return": {}}');
  hub.emit('STOP', {});
  await other.line();
  // What was queued behind the running command is dropped with the client.
  assert.deepEqual(gate.ran, [0, 2]);
  assert.deepEqual(unexpected, []);
});

test('pretty printing', async () => {
  const { hub } = newHub();
  const peer = new Peer(hub, { pretty: true });
  while ((await peer.line()) !== '}');
  peer.send({ execute: 'qmp_capabilities' });
  assert.deepEqual(await peer.lines(4), ['{', '    "return": {', '    }', '}']);
});

test('whatever bytes come, the session answers a command after them', async () => {
  const { hub, unexpected } = newHub();
  const words = [
    '{"execute":"echo","arguments":{"text":"x"}}',
    '{"execute":',
    '"log"',
    '}',
    '{',
    '[',
    ']',
    '"',
    '\n',
  ];
  words.push(
    '{"exec-oob":"log"}',
    '\\',
    '\x00',
    '\xff',
    '1e',
    '{"id":[[]]}',
    "'",
    ',',
    '{"execute":"refuse","id":{}}',
  );
  for (let seed = 0; seed < 60; seed++) {
    const random = new SeededRandom(seed);
    const peer = await Peer.negotiated(hub, 'oob');
    for (let count = random.below(40); count > 0; count--) peer.send(words[random.below(words.length)] ?? '');
    peer.send(`\n@${']}'.repeat(60)}\n`, { execute: 'echo', arguments: { text: 'sane' }, id: 'last' });
    let line = '';
    while (line !== '{"return": "sane", "id": "last"}') {
      line = await peer.line();
      assert.doesNotThrow(() => void JSON.parse(line), `seed ${seed}: ${line}`);
    }
    peer.socket.end();
  }
  assert.deepEqual(unexpected, []);
});

test('what QEMU does not have is there for those who ask for it, and nothing tells others of it', async () => {
  const { hub } = newHub();
  const { registry } = hub;
  const inner = struct('inner', { 'x-deep': extension(optional(int)) });
  const members = { text: optional(str), 'x-own': extension(optional(int)), inner: optional(inner) };
  registry.register(command('both', struct('both', members)), (args) => JSON.stringify(args));
  registry.register({ name: 'x-ours', arguments: NONE, isExtension: true }, () => 'done');
  registry.register(command('names', NONE), (_, caller) =>
    registry.names(caller).filter((n) => n.startsWith('x')),
  );
  registry.register(
    command('schema', NONE),
    (_, caller) =>
      (JSON.stringify(queryQmpSchema(registry, caller)).match(/"x-(ours|own|deep)"/g) ?? []).length,
  );
  registry.register(command('tell', NONE), () => hub.emit('STOP', { 'x-why': 'asked', how: 'fast' }));
  const [plain, other] = [await Peer.negotiated(hub), await Peer.negotiated(hub, 'x-livedisk')];
  const ask = (peer: Peer, execute: string, args?: object): Promise<string> =>
    peer.ask({ execute, ...(args && { arguments: args }) });

  assert.match(await ask(plain, 'x-ours'), /The command x-ours has not been found/);
  assert.match(await ask(plain, 'both', { 'x-own': 1 }), /Parameter 'x-own' is unexpected/);
  assert.match(
    await ask(plain, 'both', { inner: { 'x-deep': 1 } }),
    /Parameter 'inner.x-deep' is unexpected/,
  );
  assert.equal(await ask(plain, 'names'), '{"return": []}');
  assert.equal(await ask(plain, 'schema'), '{"return": 0}');

  assert.equal(await ask(other, 'x-ours'), '{"return": "done"}');
  assert.match(await ask(other, 'both', { 'x-own': 1, inner: { 'x-deep': 2 } }), /x-own.*x-deep/);
  assert.equal(await ask(other, 'names'), '{"return": ["x-ours"]}');
  assert.equal(await ask(other, 'schema'), '{"return": 3}');

  other.send({ execute: 'tell' });
  assert.match(await other.line(), /"event": "STOP", "data": \{"x-why": "asked", "how": "fast"\}/);
  assert.match(await plain.line(), /"event": "STOP", "data": \{"how": "fast"\}/);
});
