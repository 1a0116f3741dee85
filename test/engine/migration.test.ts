import assert from 'node:assert/strict';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { SocketStream } from '../../src/wire/migration/byte-stream.js';
import { MoveChannel } from '../../src/wire/migration/channel.js';
import { encodeFrame, opening } from '../../src/wire/migration/frames.js';
import { encodeMessage, type MessageName, type MessageOf } from '../../src/wire/migration/messages.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';
import { life, MigrationBed, setCapabilities, statusOf, untilEvent } from './migration-bed.js';

test('a machine moves: its disk changes hands once, and it goes on there', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  assert.deepEqual(await source.execute('query-migrate'), {});
  await bed.move();
  assert.deepEqual(life(source), ['setup', '1', 'active', 'STOP', '2', 'completed']);
  assert.deepEqual(life(destination), ['setup', 'active', 'RESUME', 'completed']);
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
  await destination.guest('read -P 0x11 0 1M');
  await destination.guest('write -P 0x22 0 64k');
  await assert.rejects(source.guest('write -P 0x33 0 64k'));
  const info = (await source.execute('query-migrate')) as { status: string; ram: { transferred: number } };
  assert.equal(info.status, 'completed');
  assert.ok(info.ram.transferred > 100);
  assert.deepEqual(await destination.execute('query-migrate'), { status: 'completed' });
});

test('where the machine has moved to it has moved for good', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await bed.move();
  await destination.engine.close();
  const why = 'The machine has moved: the destination has it';
  assert.equal(await source.refusal('cont'), why);
  assert.equal(await source.refusal('blockdev-set-active', { active: true }), why);
  assert.equal(
    await source.refusal('migrate', { uri: bed.uri }),
    "Can't migrate the vm that was paused due to previous migration",
  );
  await source.execute('system_reset');
  assert.equal(await statusOf(source), 'prelaunch');
  assert.equal(await source.refusal('cont'), why);
  assert.equal(await source.refusal('x-move-claim'), why);
  // Who knows that the other one is no more may say so.
  await source.execute('x-move-claim', { force: true });
  await source.execute('cont');
  await source.guest('write -P 0x33 0 64k');
});

for (const [what, before, after] of [
  ['stopped', 'paused', 'paused'],
  ['not started', 'prelaunch', 'prelaunch'],
] as const)
  test(`a machine that is ${what} stays so where it comes to`, async (t) => {
    const bed = await MigrationBed.shared(t, { source: { startStopped: before === 'prelaunch' } });
    if (before === 'paused') await bed.source.execute('stop');
    await bed.move();
    assert.equal(await statusOf(bed.destination), after);
    await bed.destination.execute('cont');
    await bed.destination.guest('write -P 1 0 64k');
  });

test('a destination that was told to wait does: with the images at once, or with late-block-activate at its start', async (t) => {
  for (const isLate of [false, true]) {
    const bed = await MigrationBed.shared(t, { destination: { startStopped: true } });
    const { source, destination } = bed;
    if (isLate) await setCapabilities(destination, 'late-block-activate');
    await bed.move();
    assert.equal(await statusOf(destination), 'paused');
    assert.equal(destination.engine.graph.node('A').activity, isLate ? 'inactive' : 'active');
    assert.equal(source.engine.graph.node('A').activity, 'inactive');
    await destination.execute('cont');
    await destination.guest('read -P 0x11 0 1M');
    await destination.guest('write -P 1 0 64k');
  }
});

test('cont on a machine that waits is remembered, and stop takes it back', async (t) => {
  const bed = await MigrationBed.shared(t);
  await bed.destination.execute('stop');
  await bed.move();
  assert.equal(await statusOf(bed.destination), 'paused');
});

// ---- what does not fit

test('a machine of another type is refused, and goes on where it is', async (t) => {
  const bed = await MigrationBed.shared(t, { destination: { machine: 'q35' } });
  const { source, destination } = bed;
  await bed.move();
  const why = "Machine type received is 'pc-i440fx-7.2' and local is 'pc-q35-7.2'";
  assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': why });
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['running', 'inmigrate']);
  assert.deepEqual(life(source), ['setup', 'failed']);
  await source.guest('write -P 1 0 64k');
});

test('a machine that lacks a device is refused before the guest stops', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { engine } = bed.destination;
  await engine.devices.get('virtio0')?.close();
  engine.devices.clear();
  for (const device of engine.machine.devices) engine.machine.unplug(device);
  await engine.addDevice('A', { id: 'other' });
  await bed.move();
  const info = (await bed.source.execute('query-migrate')) as JsonObject;
  assert.match(
    info['error-desc'] as string,
    /^Unknown savevm section or instance '\/machine\/peripheral\/virtio0\/virtio-blk-pci' 0\. Make sure/,
  );
  assert.deepEqual(life(bed.source), ['setup', '1', 'active', 'failed']);
  assert.deepEqual(life(bed.destination), ['setup', 'active', 'failed']);
});

test('a destination that cannot have the images says so, and the guest goes on at the source; then it succeeds', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await bed.listen();
  // Another program takes the image in the moment in which nobody has it.
  const other = new EngineBed(t, { incoming: true });
  const file = { driver: 'file', filename: source.path('A.qcow2') };
  await other.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
  await setCapabilities(source, 'pause-before-switchover');
  await source.execute('migrate', { uri: bed.uri });
  await untilEvent(source, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  const inactivated = source.engine.graph.node('A');
  const taken = (async () => {
    while (inactivated.activity === 'active') await new Promise((resolve) => setImmediate(resolve));
    await other.engine.activate(other.engine.graph.node('A'));
    await other.engine.inactivate(other.engine.graph.node('A'));
  })();
  await source.execute('migrate-continue', { state: 'pre-switchover' });
  await Promise.all([source.engine.moves.source.ended, taken.catch(() => undefined)]);
  // Whoever came first: one of both has the machine, and the disk.
  const running = [source, destination].filter(({ engine }) => engine.runState.isRunning);
  assert.equal(running.length, 1);
  await running[0]?.guest('read -P 0x11 0 1M');
  await running[0]?.guest('write -P 1 0 64k');
});

test('while a job runs, or an export is written, the machine stays: it says which', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await source.image('spare');
  const copy = { 'job-id': 'j', device: 'A', target: 'spare', sync: 'full', speed: 65536 };
  await source.execute('blockdev-mirror', copy);
  await bed.move();
  const said = async (): Promise<unknown> =>
    ((await source.execute('query-migrate')) as JsonObject)['error-desc'];
  assert.equal(await said(), "The mirror job 'j' has not ended: its images cannot go");
  assert.equal(await statusOf(source), 'running');
  await source.execute('block-job-cancel', { device: 'j' });
  await source.event('BLOCK_JOB_CANCELLED', 'j');
  const addr = { type: 'unix', data: { path: source.path('nbd') } };
  await source.execute('nbd-server-start', { addr });
  await source.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'spare', writable: true });
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.match(String(await said()), /Operation not permitted/);
  await source.execute('nbd-server-stop');
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.deepEqual([await statusOf(source), await statusOf(destination)], ['postmigrate', 'running']);
});

// ---- what comes

async function connect(bed: MigrationBed): Promise<SocketStream> {
  const { host } = bed.source.engine;
  return new SocketStream(await host.net.connect({ type: 'unix', path: bed.destination.path('move') }));
}

function frame<N extends MessageName>(name: N, body: MessageOf<N>['body']): Buffer {
  return encodeFrame(encodeMessage(name, body));
}

const HELLO = frame('hello', {
  session: '0'.repeat(32),
  word: '0'.repeat(64),
  machine: { type: 'pc-i440fx-7.2' },
});

function damaged(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  copy.writeUInt8(255 - copy.readUInt8(20), 20);
  return copy;
}

const FOREIGN: Array<[string, Buffer, string]> = [
  [
    "QEMU's stream",
    Buffer.concat([Buffer.from('QEVM'), Buffer.alloc(100)]),
    'This is a migration stream of QEMU; livedisk takes only its own',
  ],
  ['anything else', Buffer.from('GET / HTTP/1.1\r\n\r\n'), 'Not a migration stream'],
  [
    'a newer stream',
    Buffer.from('LIVEMOVE\0\0\0\x02'),
    'The migration stream has version 2; this livedisk knows version 1',
  ],
  [
    'a damaged frame',
    Buffer.concat([opening(), damaged(HELLO)]),
    'The migration stream is damaged: a checksum is wrong',
  ],
  [
    'an unknown message',
    Buffer.concat([opening(), encodeFrame({ type: 99, payload: Buffer.from('{}') })]),
    'The migration stream has an unknown message (type 99)',
  ],
  [
    'an unknown section',
    Buffer.concat([
      opening(),
      HELLO,
      frame('section', { name: 'memory', version: 1, bytes: Buffer.alloc(3) }),
    ]),
    "Unknown savevm section 'memory'",
  ],
  [
    'a newer section',
    Buffer.concat([
      opening(),
      HELLO,
      frame('section', { name: 'state', version: 2, bytes: Buffer.from('{}') }),
    ]),
    "savevm: unsupported version 2 for 'state' v1",
  ],
  [
    'a section that is none',
    Buffer.concat([
      opening(),
      HELLO,
      frame('section', { name: 'state', version: 1, bytes: Buffer.from('{"a":') }),
    ]),
    "The migration stream is damaged: section 'state'",
  ],
  [
    'an end without a beginning',
    Buffer.concat([opening(), HELLO, frame('end', { sections: 0, sha256: '' })]),
    'The migration stream is damaged: a section is missing',
  ],
  [
    'the last word first',
    Buffer.concat([opening(), HELLO, frame('go', { word: '' })]),
    "The migration stream is damaged: 'go' in place of 'section' or 'described' or 'end'",
  ],
];

test('a destination refuses by name what is no move to it, changes nothing, and takes the next', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { destination } = bed;
  await bed.listen();
  const image = readFileSync(bed.source.path('A.qcow2'));
  for (const [what, bytes, words] of FOREIGN) {
    const stream = await connect(bed);
    await stream.write(bytes);
    const channel = new MoveChannel(stream, bed.source.engine.host.clock);
    const said = await (async (): Promise<string> => {
      for (;;) {
        const message = await channel.receive();
        if (message.name === 'refuse') return message.body.reason;
      }
    })();
    assert.equal(said, words, what);
    stream.destroy();
    assert.ok(bed.warnings.includes(words), what);
    assert.equal(await statusOf(destination), 'inmigrate');
    assert.equal(destination.engine.graph.node('A').activity, 'inactive');
  }
  assert.deepEqual(readFileSync(bed.source.path('A.qcow2')), image);
  await bed.source.execute('migrate', { uri: bed.uri });
  await bed.source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
});

test('a source finds out before the guest stops that no livedisk is there', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source } = bed;
  const path = source.path('other');
  const { net } = source.engine.host;
  for (const [answer, words] of [
    ['NBDMAGICIHAVEOPT', 'Not a migration stream'],
    [
      '',
      "The other end has closed the connection and said nothing: no livedisk is there, or one with other 'tls-creds'",
    ],
  ]) {
    const listener = await net.listen({ type: 'unix', path }, (socket) => {
      socket.start({ onData: () => undefined, onClose: () => undefined });
      if (answer !== '') socket.write(Buffer.from(answer ?? ''));
      else socket.end();
    });
    await source.execute('migrate', { uri: `unix:${path}` });
    await source.engine.moves.source.ended;
    await listener.close();
    assert.deepEqual(await source.execute('query-migrate'), { status: 'failed', 'error-desc': words });
    assert.ok(!life(source).includes('STOP'));
    await source.guest('write -P 1 0 64k');
  }
});

test('a source that finds nobody says so', async (t) => {
  const bed = await MigrationBed.shared(t);
  await bed.source.execute('migrate', { uri: 'unix:/nonexistent/x' });
  await bed.source.engine.moves.source.ended;
  const why = "Failed to connect to '/nonexistent/x': No such file or directory";
  assert.deepEqual(await bed.source.execute('query-migrate'), { status: 'failed', 'error-desc': why });
  assert.deepEqual(life(bed.source), ['setup', 'failed']);
});

// ---- pause and cancel

test('pause-before-switchover waits with the guest stopped, and goes on, or back', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await setCapabilities(source, 'pause-before-switchover');
  await bed.listen();
  const pause = async (): Promise<void> => {
    source.events.length = 0;
    await source.execute('migrate', { uri: bed.uri });
    await untilEvent(source, 'MIGRATION', ({ status }) => status === 'pre-switchover');
    assert.deepEqual(life(source), ['setup', '1', 'active', 'STOP', 'pre-switchover']);
    assert.equal(await statusOf(source), 'finish-migrate');
  };
  await pause();
  assert.equal(await source.refusal('cont'), 'Migration is not finalized yet');
  await source.execute('stop');
  await source.execute('system_reset');
  assert.equal(await statusOf(source), 'finish-migrate');
  assert.equal(await source.refusal('migrate', { uri: bed.uri }), "There's a migration process in progress");
  const capabilities = { capabilities: [{ capability: 'events', state: true }] };
  assert.equal(
    await source.refusal('migrate-set-capabilities', capabilities),
    "There's a migration process in progress",
  );
  assert.equal(
    await source.refusal('migrate-continue', { state: 'device' }),
    'Migration not in expected state: pre-switchover',
  );
  assert.equal(
    await source.refusal('device_add', { driver: 'virtio-blk', drive: 'A' }),
    'device_add not allowed while migrating',
  );
  await source.execute('migrate_cancel');
  await source.engine.moves.source.ended;
  assert.deepEqual(life(source).slice(-3), ['cancelling', 'RESUME', 'cancelled']);
  assert.deepEqual(await source.execute('query-migrate'), { status: 'cancelled' });
  await source.guest('write -P 2 0 64k');
  await pause();
  await source.execute('migrate-continue', { state: 'pre-switchover' });
  await source.engine.moves.source.ended;
  assert.deepEqual(life(source).slice(-3), ['device', '2', 'completed']);
  assert.equal(await statusOf(destination), 'running');
  await destination.guest('read -P 2 0 64k');
});

test('cancel and continue without a move', async (t) => {
  const bed = new EngineBed(t);
  assert.deepEqual(await bed.execute('migrate_cancel'), {});
  assert.equal(
    await bed.refusal('migrate-continue', { state: 'pre-switchover' }),
    'Migration not in expected state: none',
  );
  assert.deepEqual(await bed.execute('migrate-continue', { state: 'none' }), {});
  assert.equal(
    await bed.refusal('migrate-incoming', { uri: 'tcp:localhost:0' }),
    "'-incoming' was not specified on the command line",
  );
  assert.equal(await bed.refusal('x-move-claim'), 'There is no move that waits for its last word');
  assert.equal(await bed.refusal('x-move-release'), 'There is no move that waits for its last word');
  assert.deepEqual(await bed.execute('x-query-move'), { role: 'none', owner: 'here' });
});

// ---- in one direction

test('a machine goes into a file, and comes out of it; what was not written whole is of no use', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const path = source.path('state');
  await source.execute('migrate', { uri: `file:${path},offset=4096` });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(source), 'postmigrate');
  const whole = readFileSync(path);
  assert.ok(whole.subarray(0, 4096).every((byte) => byte === 0));
  writeFileSync(source.path('part'), whole.subarray(0, whole.length - 1));
  await destination.execute('migrate-incoming', { uri: `file:${path},offset=0x1000` });
  await untilEvent(destination, 'RESUME');
  await destination.guest('read -P 0x11 0 1M');
  // Locks alone say who goes on with what lies in a file.
  assert.match(await source.refusal('cont'), /Failed to get "write" lock/);
  await destination.engine.close();
  await source.execute('cont');
  await source.guest('write -P 1 0 64k');
  const other = new EngineBed(t, { incoming: true, warn: (text) => bed.warnings.push(text) });
  await other.engine.addNode({ driver: 'null-co', size: DISK_BYTES, 'node-name': 'A' });
  await other.device('A');
  await other.execute('migrate-incoming', { uri: `file:${source.path('part')},offset=4096` });
  const isTold = (): boolean => bed.warnings.includes('The migration stream ends too early');
  while (!isTold()) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(await statusOf(other), 'inmigrate');
  while (other.engine.moves.destination.isStarted) await new Promise((resolve) => setTimeout(resolve, 5));
  await other.execute('migrate-incoming', { uri: `file:${path},offset=4096` });
  await untilEvent(other, 'RESUME');
});

test('a machine goes through a command, whose failure is the move\u2019s', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await source.execute('migrate', { uri: 'exec:cat >/dev/null; exit 3' });
  await source.engine.moves.source.ended;
  const info = (await source.execute('query-migrate')) as JsonObject;
  assert.equal(info['error-desc'], 'The command has ended with status 3');
  assert.equal(await statusOf(source), 'running');
  await source.guest('write -P 2 0 64k');
  const path = source.path('state');
  await source.execute('migrate', { uri: `exec:cat >${path}` });
  await source.engine.moves.source.ended;
  await destination.execute('migrate-incoming', { uri: `exec:cat ${path}` });
  await untilEvent(destination, 'MIGRATION', ({ status }) => status === 'completed');
  await destination.guest('read -P 2 0 64k');
});

test('a move whose command takes all and does not end is given up', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source } = bed;
  const [taken, held] = [source.path('taken'), source.path('held')];
  writeFileSync(held, '');
  t.after(() => rmSync(held, { force: true }));
  const words = `exec:cat >/dev/null; touch ${taken}; while [ -e ${held} ]; do sleep 0.1; done`;
  await source.execute('migrate', { uri: words });
  while (!existsSync(taken)) await new Promise((resolve) => setTimeout(resolve, 5));
  await source.execute('migrate_cancel');
  await source.engine.moves.source.ended;
  assert.equal(((await source.execute('query-migrate')) as JsonObject)['status'], 'cancelled');
  assert.equal(await statusOf(source), 'running');
  await source.guest('write -P 2 0 64k');
});

// ---- capabilities, parameters

test('capabilities that would be seen are refused by name, all or none', async (t) => {
  const bed = new EngineBed(t);
  const set = (...names: string[]): JsonObject => ({
    capabilities: names.map((capability) => ({ capability, state: true })),
  });
  assert.match(
    await bed.refusal('migrate-set-capabilities', set('events', 'multifd')),
    /^Multifd is not supported/,
  );
  assert.equal(
    await bed.refusal('migrate-set-capabilities', set('zero-copy-send')),
    'Zero copy only available for non-compressed non-TLS multifd migration',
  );
  assert.equal(
    await bed.refusal('migrate-set-capabilities', set('bogus')),
    "Parameter 'capability' does not accept value 'bogus'",
  );
  assert.ok(!bed.engine.moves.capabilities.has('events'));
  const list = (await bed.execute('query-migrate-capabilities')) as unknown[];
  assert.equal(list.length, 21);
  assert.equal(
    await bed.refusal('migrate-start-postcopy'),
    'Enable postcopy with migrate_set_capability before the start of migration',
  );
});

test('parameters have bounds', async (t) => {
  const bed = new EngineBed(t);
  const refused: Array<[string, JsonObject[string], string]> = [
    [
      'downtime-limit',
      2_000_001,
      "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
    ],
    [
      'downtime-limit',
      -1,
      "Parameter 'downtime_limit' expects an integer in the range of 0 to (2000 * 1000) ms",
    ],
    ['announce-step', 0, "Parameter 'announce_step' expects a value between 0 and 10000"],
    ['compress-threads', 256, "Parameter 'compress-threads' expects uint8_t"],
    [
      'cpu-throttle-initial',
      0,
      "Parameter 'cpu_throttle_initial' expects an integer in the range of 1 to 99",
    ],
    [
      'max-cpu-throttle',
      10,
      "Parameter 'max_cpu_throttle' expects an integer in the range of cpu_throttle_initial to 99",
    ],
    [
      'xbzrle-cache-size',
      5,
      "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
    ],
    ['x-checkpoint-delay', -1, "Parameter 'x-checkpoint-delay' expects uint32_t"],
    [
      'block-bitmap-mapping',
      [{ 'node-name': 'a', alias: '1b', bitmaps: [] }],
      "Invalid mapping given for block-bitmap-mapping: The node alias '1b' is not well-formed",
    ],
  ];
  for (const [name, value, words] of refused)
    assert.equal(await bed.refusal('migrate-set-parameters', { [name]: value }), words);
  await bed.execute('migrate-set-parameters', { 'max-bandwidth': 5 * MiB, 'tls-creds': null });
  const values = (await bed.execute('query-migrate-parameters')) as JsonObject;
  assert.equal(values['max-bandwidth'], 5 * MiB);
  assert.equal(values['tls-creds'], '');
  assert.equal(values['announce-max'], 550);
  // The most that libvirt has, in MiB, is its "no limit".
  const most = 9_223_372_036_853_727_232n;
  await bed.execute('migrate-set-parameters', { 'max-bandwidth': most });
  assert.equal(((await bed.execute('query-migrate-parameters')) as JsonObject)['max-bandwidth'], most);
});

// ---- bitmaps

async function sha256Of(bed: EngineBed, node: string, name: string): Promise<unknown> {
  return bed.execute('x-debug-block-dirty-bitmap-sha256', { node, name });
}

test('dirty bitmaps go along, by the names that both ends give them', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps');
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'b0', granularity: 4096 });
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'b1' });
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'left' });
  await source.guest('write -P 5 1M 64k');
  await source.guest('write -P 5 7M 4k');
  await source.execute('block-dirty-bitmap-disable', { node: 'A', name: 'b1' });
  const hash = await sha256Of(source, 'A', 'b0');
  const bitmaps = [
    { name: 'b0', alias: 'zero' },
    { name: 'b1', alias: 'one' },
  ];
  await source.execute('migrate-set-parameters', {
    'block-bitmap-mapping': [{ 'node-name': 'A', alias: 'disk', bitmaps }],
  });
  const there = [
    { name: 'there0', alias: 'zero' },
    { name: 'there1', alias: 'one' },
  ];
  await destination.execute('migrate-set-parameters', {
    'block-bitmap-mapping': [{ 'node-name': 'A', alias: 'disk', bitmaps: there }],
  });
  await bed.move();
  const arrived = destination.engine.graph.node('A').dirtyBitmaps;
  assert.deepEqual(
    arrived.map(({ name, enabled, granularityBytes }) => [name, enabled, granularityBytes]),
    [
      ['there0', true, 4096],
      ['there1', false, 65536],
    ],
  );
  assert.deepEqual(await sha256Of(destination, 'A', 'there0'), hash);
  await destination.guest('write -P 6 3M 4k');
  assert.notDeepEqual(await sha256Of(destination, 'A', 'there0'), hash);
});

test('bitmaps that nobody knows there are told and left out; one that is there already stops the move', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps');
  await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'b0' });
  await destination.execute('block-dirty-bitmap-add', { node: 'A', name: 'b0' });
  await bed.move();
  const info = (await source.execute('query-migrate')) as JsonObject;
  assert.equal(info['error-desc'], "Bitmap with the same name ('b0') already exists on destination");
  // It was found out while the guest ran.
  assert.deepEqual(life(source), ['setup', '1', 'active', 'failed']);
  await destination.execute('migrate-set-parameters', { 'block-bitmap-mapping': [] });
  await source.execute('migrate', { uri: bed.uri });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
  assert.ok(bed.warnings.includes("Error: Unknown node alias 'A'"));
});

for (const goesAlong of [true, false])
  test(`a bitmap that the shared image keeps comes ${goesAlong ? 'along' : 'in the image'}, and comes back when the move fails`, async (t) => {
    const bed = await MigrationBed.shared(t);
    const { source, destination } = bed;
    if (goesAlong) for (const end of [source, destination]) await setCapabilities(end, 'dirty-bitmaps');
    await source.execute('block-dirty-bitmap-add', { node: 'A', name: 'kept', persistent: true });
    await source.guest('write -P 5 1M 64k');
    const hash = await sha256Of(source, 'A', 'kept');
    const file = { driver: 'file', filename: source.path('A.qcow2') };
    // A move whose destination cannot have the image fails in the last exchange but one.
    const { graph } = destination.engine;
    const transaction = graph.transaction.bind(graph);
    let isFailing = true;
    graph.transaction = (...args) => {
      if (isFailing) return Promise.reject(new BlockError('busy', 'not now'));
      return transaction(...args);
    };
    await bed.move();
    const info = (await source.execute('query-migrate')) as JsonObject;
    assert.equal(info['error-desc'], 'not now');
    assert.equal(await statusOf(source), 'running');
    assert.deepEqual(await sha256Of(source, 'A', 'kept'), hash);
    isFailing = false;
    await source.guest('write -P 5 3M 64k');
    const later = await sha256Of(source, 'A', 'kept');
    assert.notDeepEqual(later, hash);
    await source.execute('migrate', { uri: bed.uri });
    await source.engine.moves.source.ended;
    assert.equal(await statusOf(destination), 'running');
    assert.deepEqual(await sha256Of(destination, 'A', 'kept'), later);
    const bitmap = destination.engine.graph.node('A').findBitmap('kept');
    assert.deepEqual([bitmap?.persistent, bitmap?.enabled, bitmap?.inconsistent], [true, true, false]);
    await destination.engine.close();
    const reader = new EngineBed(t);
    await reader.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
    assert.deepEqual(await sha256Of(reader, 'A', 'kept'), later);
  });
