import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, openSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { test } from 'node:test';

import { listenFor } from '../../src/monitor/migration.js';
import { dup } from '../kit/vhost-front-end.js';
import { EngineBed } from './engine-bed.js';
import { MigrationBed, setCapabilities, statusOf, untilEvent } from './migration-bed.js';

/** What people and older tools say of moves, in QEMU's words. */

async function hmp(bed: EngineBed, line: string): Promise<string> {
  return ((await bed.execute('human-monitor-command', { 'command-line': line })) as string).replaceAll(
    '\r',
    '',
  );
}

const GLOBALS =
  'globals:\nstore-global-state: on\nonly-migratable: off\nsend-configuration: on\nsend-section-footer: on\n' +
  'decompress-error-check: on\nclear-bitmap-shift: 18\n';

const LINES: Array<[string, string]> = [
  ['info migrate', GLOBALS],
  ['migrate', 'migrate: string expected\nTry "help migrate" for more information\n'],
  ['migrate foo', "Error: Parameter 'uri' expects a valid migration protocol\n"],
  ['info migrate', `${GLOBALS}Migration status: failed\ntotal time: 0 ms\n`],
  ['migrate -d unix:', 'Error: invalid Unix socket address\n'],
  ['migrate_cancel', ''],
  ['migrate_incoming x', "Error: '-incoming' was not specified on the command line\n"],
  ['migrate_continue device', 'Error: Migration not in expected state: failed\n'],
  ['migrate_set_capability events on', ''],
  ['migrate_set_capability foo on', 'Error: invalid parameter value: foo\n'],
  [
    'migrate_set_capability events maybe',
    "Expected 'on' or 'off'\nTry \"help migrate_set_capability\" for more information\n",
  ],
  ['migrate_set_parameter downtime-limit 500', ''],
  ['migrate_set_parameter max-bandwidth 8796093022207', ''],
  [
    'migrate_set_parameter max-bandwidth 8796093022207T',
    "Error: Parameter 'max-bandwidth' expects a size value\n",
  ],
  ['migrate_set_parameter max-bandwidth 1', ''],
  ['migrate_set_parameter compress-wait-thread off', ''],
  ['migrate_set_parameter tls-creds x', ''],
  ['migrate_set_parameter foo 1', 'Error: invalid parameter value: foo\n'],
  [
    'migrate_set_parameter block-bitmap-mapping x',
    'Error: The block-bitmap-mapping parameter can only be set through QMP\n',
  ],
  [
    'migrate_start_postcopy',
    'Error: Enable postcopy with migrate_set_capability before the start of migration\n',
  ],
  ['watchdog_action x', 'Error: invalid parameter value: x\n'],
  ['watchdog_action pause', ''],
  ['watchdog_action', 'watchdog_action: string expected\nTry "help watchdog_action" for more information\n'],
  ['system_wakeup', 'Error: Unable to wake up: guest is not in suspended state\n'],
  ['announce_self', ''],
  ['announce_self x y', ''],
  ['migrate tcp:[::1:5', "Error: error parsing IPv6 address '[::1:5'\n"],
  ['migrate tcp::', "Error: error parsing port in address ':'\n"],
  ['migrate tcp:h:1,to=5x', 'Error: error parsing to= argument\n'],
  ['migrate_recover x', 'Error: Migrate recover can only be run when postcopy is paused.\n'],
  ['migrate_pause', 'Error: migrate-pause is currently only supported during postcopy-active state\n'],
];

test("the human monitor's commands about moves answer as QEMU's", async (t) => {
  const bed = new EngineBed(t);
  for (const [line, answer] of LINES) assert.equal(await hmp(bed, line), answer, line);
  const mapping = [{ 'node-name': 'a', alias: 'b', bitmaps: [{ name: 'x', alias: 'y' }] }];
  await bed.execute('migrate-set-parameters', { 'block-bitmap-mapping': mapping });
  assert.equal(
    await hmp(bed, 'info migrate_parameters'),
    'announce-initial: 50 ms\nannounce-max: 550 ms\nannounce-rounds: 5\nannounce-step: 100 ms\ncompress-level: 1\n' +
      'compress-threads: 8\ncompress-wait-thread: off\ndecompress-threads: 2\nthrottle-trigger-threshold: 50\n' +
      'cpu-throttle-initial: 20\ncpu-throttle-increment: 10\ncpu-throttle-tailslow: off\nmax-cpu-throttle: 99\n' +
      "tls-creds: 'x'\ntls-hostname: ''\nmax-bandwidth: 1048576 bytes/second\ndowntime-limit: 500 ms\n" +
      'x-checkpoint-delay: 20000 ms\nblock-incremental: off\nmultifd-channels: 2\nmultifd-compression: none\n' +
      "xbzrle-cache-size: 67108864 bytes\nmax-postcopy-bandwidth: 0\ntls-authz: ''\nblock-bitmap-mapping:\n" +
      "  'a' -> 'b'\n    'x' -> 'y'\n",
  );
  const capabilities = await hmp(bed, 'info migrate_capabilities');
  assert.match(
    capabilities,
    /^xbzrle: off\nrdma-pin-all: off\n.*\nevents: on\n.*\npostcopy-preempt: off\n$/s,
  );
});

test('a machine moves as the human monitor says, and as channels of later QEMUs do', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const path = destination.path('move');
  const socket = { transport: 'socket', type: 'unix', path };
  const channels = [{ 'channel-type': 'main', addr: socket }];
  assert.match(
    await destination.refusal('migrate-incoming', { uri: bed.uri, channels }),
    /^'uri' and 'channels' arguments are mutually exclusive/,
  );
  assert.equal(await destination.refusal('migrate-incoming', {}), "Parameter 'uri' is missing");
  const nothing = { channels: [{ 'channel-type': 'main', addr: { transport: 'exec', args: [] } }] };
  for (const [bench, command] of [
    [source, 'migrate'],
    [destination, 'migrate-incoming'],
  ] as const)
    assert.equal(await bench.refusal(command, nothing), "Parameter 'args' is missing a program");
  await destination.execute('migrate-incoming', { channels });
  assert.equal(await hmp(destination, 'info migrate'), `${GLOBALS}socket address: [\n\tunix:${path}\n]\n`);
  assert.equal(
    await hmp(source, `migrate unix:${path}`),
    'terminal does not allow synchronous migration, continuing detached\n',
  );
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(destination), 'running');
  assert.match(
    await hmp(source, 'info migrate'),
    /Migration status: completed\ntotal time: \d+ ms\ndowntime: \d+ ms\n/,
  );
  assert.equal(await hmp(source, 'info status'), 'VM status: paused (postmigrate)\n');
});

test('a move may be yanked: it fails as by a link that breaks', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const yank = { instances: [{ type: 'migration' }] };
  assert.equal(await source.refusal('yank', yank), 'Instance not found');
  await bed.listen();
  assert.deepEqual(await destination.execute('query-yank'), [{ type: 'migration' }]);
  await setCapabilities(source, 'pause-before-switchover');
  await source.execute('migrate', { uri: bed.uri });
  await untilEvent(source, 'MIGRATION', ({ status }) => status === 'pre-switchover');
  assert.deepEqual(await source.execute('query-yank'), [{ type: 'migration' }]);
  await source.execute('yank', yank);
  await source.execute('migrate-continue', { state: 'pre-switchover' });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(source), 'running');
  assert.equal(await statusOf(destination), 'inmigrate');
});

test('a machine goes through descriptors that were passed, or were there at the start', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  assert.equal(
    await source.refusal('migrate', { uri: 'fd:out' }),
    "File descriptor named 'out' has not been found",
  );
  const path = source.path('state');
  source.engine.descriptors.add('out', openSync(path, 'w'));
  await source.execute('migrate', { uri: 'fd:out' });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(source), 'postmigrate');
  await assert.rejects(listenFor(destination.engine, 'fd:abc'), {
    message: "Invalid file descriptor number 'abc'",
  });
  await assert.rejects(listenFor(destination.engine, 'foo'), {
    message: 'unknown migration protocol: foo',
  });
  await listenFor(destination.engine, `fd:${openSync(path, 'r')}`);
  await untilEvent(destination, 'RESUME');
  await destination.guest('read -P 0x11 0 1M');
});

/** A connection to whoever listens at `path`, as a descriptor. */
async function connected(path: string): Promise<number> {
  const socket = net.connect(path);
  await once(socket, 'connect');
  const fd = dup((socket as unknown as { _handle: { fd: number } })._handle.fd);
  socket.destroy();
  return fd;
}

test('tls-creds are for a connection that was passed, too; a pipe, a command and a file are refused with them', async (t) => {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  const dir = source.path('.');
  writeFileSync(source.path('keys.psk'), `qemu:${'ab'.repeat(32)}\n`);
  for (const [end, endpoint] of [
    [source, 'client'],
    [destination, 'server'],
  ] as const) {
    await end.execute('object-add', { 'qom-type': 'tls-creds-psk', id: 'tls', dir, endpoint });
    await end.execute('migrate-set-parameters', { 'tls-creds': 'tls' });
  }
  const why = "'tls-creds' are set, and TLS needs a connection: a pipe, a command and a file have none";
  const path = source.path('state');
  for (const uri of [`exec:cat > ${path}`, `file:${path}`])
    assert.equal(await source.refusal('migrate', { uri }), why);
  assert.ok(!existsSync(path));
  for (const uri of ['exec:cat', `file:${source.path('A.qcow2')}`])
    assert.equal(await destination.refusal('migrate-incoming', { uri }), why);
  source.engine.descriptors.add('out', openSync(path, 'w'));
  await source.execute('migrate', { uri: 'fd:out' });
  await source.engine.moves.source.ended;
  assert.equal(((await source.execute('query-migrate')) as { 'error-desc': string })['error-desc'], why);
  await bed.listen();
  source.engine.descriptors.add('out', await connected(destination.path('move')));
  // A destination that expects TLS hears nothing that is not.
  await source.execute('migrate', { uri: 'fd:out' });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(source), 'postmigrate');
  await destination.guest('read -P 0x11 0 1M');
});

test('a destination whose one connection has failed takes another one', async (t) => {
  const { source, destination } = await MigrationBed.shared(t);
  const server = net.createServer().listen(source.path('listener'));
  t.after(() => void server.close());
  for (const says of [undefined, 'QEVM']) {
    const came = once(server, 'connection');
    destination.engine.descriptors.add('in', await connected(source.path('listener')));
    await destination.execute('migrate-incoming', { uri: 'fd:in' });
    const [socket] = (await came) as [net.Socket];
    if (says === undefined) socket.destroy();
    else socket.end(says);
    while (destination.engine.moves.destination.isStarted)
      await new Promise((resolve) => setTimeout(resolve, 5));
    socket.destroy();
  }
  await destination.execute('migrate-incoming', { uri: `unix:${destination.path('move')}` });
  await source.execute('migrate', { uri: `unix:${destination.path('move')}` });
  await source.engine.moves.source.ended;
  assert.equal(await statusOf(source), 'postmigrate');
});
