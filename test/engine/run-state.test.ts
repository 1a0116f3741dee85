import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import { createImage } from '../../src/block/create.js';
import { Flag } from '../../src/block/request.js';
import { RunState } from '../../src/attach/run-state.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { CommandFlag } from '../../src/wire/nbd/constants.js';
import { createRealHost } from '../../src/host/real.js';
import { FaultyHost } from '../kit/faulty-host.js';
import { PATIENT_MS, withHeldClock } from '../kit/held-clock.js';
import { scratch } from '../kit/program.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

async function connect(bed: EngineBed, path: string, exportName: string): Promise<NbdClient> {
  return NbdClient.connect({ host: bed.engine.host, address: { type: 'unix', path }, exportName });
}

test("the client of a device's endpoint is the guest: stop holds it, cont lets it go on", async (t) => {
  const bed = new EngineBed(t, { startStopped: true });
  const path = bed.path('disk.sock');
  await createImage(bed.engine.opener, bed.path('a.raw'), 'raw', { sizeBytes: DISK_BYTES });
  await bed.engine.addNode({
    driver: 'raw',
    'node-name': 'A',
    file: { driver: 'file', filename: bed.path('a.raw') },
  });
  await bed.device('A', { endpoint: path });
  assert.deepEqual(await bed.execute('query-status'), {
    status: 'prelaunch',
    singlestep: false,
    running: false,
  });
  const guest = await connect(bed, path, 'virtio0');
  let written = false;
  const write = guest.write(0, Buffer.alloc(4096, 7), 0).then(() => (written = true));
  await bed.engine.host.clock.sleep(50);
  assert.equal(written, false, 'a stopped guest writes nothing');
  // The human monitor's qemu-io is no guest.
  await bed.guest('read -P 0 0 4k');
  await bed.execute('cont');
  await write;
  await bed.guest('read -P 7 0 4k');
  await bed.execute('stop');
  assert.deepEqual(
    bed.events.map(({ event }) => event),
    ['RESUME', 'STOP'],
  );
  const [stats] = (await bed.execute('query-blockstats')) as Array<{ stats: { wr_bytes: number } }>;
  assert.equal(stats?.stats.wr_bytes, 4096);
  await guest.close();
});

test('an engine ends while a stopped guest waits for its requests', async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('disk.sock');
  await bed.image('A');
  await bed.device('A', { endpoint: path });
  await bed.execute('stop');
  const guest = await connect(bed, path, 'virtio0');
  const requests = [
    guest.write(0, Buffer.alloc(4096, 7), 0),
    guest.read(0, Buffer.alloc(4096)),
    guest.flush(),
  ].map((request) => assert.rejects(request, { errno: 'EIO' }));
  // Answered also now, and after the server has taken the others.
  await guest.blockStatus(0, 4096);
  await bed.engine.close();
  await Promise.all(requests);
});

test('a disk that cannot be flushed keeps no guest from stopping', async (t) => {
  const bed = new EngineBed(t);
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'A',
    image: { driver: 'null-co', size: DISK_BYTES },
    'inject-error': [{ event: 'none', iotype: 'flush', errno: 5, once: true }],
  });
  await bed.device('A');
  assert.deepEqual(await bed.execute('stop'), {});
  assert.deepEqual(
    bed.events.map(({ event }) => event),
    ['STOP'],
  );
});

test('a read whose error is ignored shows nothing of what was read before', async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('disk.sock');
  await bed.image('A');
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'faulty',
    image: 'A',
    'inject-error': [{ event: 'none', iotype: 'read', errno: 5, sector: 2048 }],
  });
  const endpoint = { type: 'unix', path } as const;
  await bed.engine.addDevice('faulty', { id: 'virtio0', readErrors: 'ignore', endpoint });
  const guest = await connect(bed, path, 'virtio0');
  const [good, bad] = [Buffer.alloc(65536), Buffer.alloc(65536, 0xff)];
  await guest.write(0, Buffer.alloc(65536, 7), 0);
  await guest.read(0, good);
  assert.ok(good.equals(Buffer.alloc(65536, 7)));
  await guest.read(1024 * 1024, bad);
  assert.ok(bad.equals(Buffer.alloc(65536)));
  await guest.close();
});

test('werror=enospc stops the guest, and cont tries the request again', async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('disk.sock');
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'A',
    image: { driver: 'null-co', size: DISK_BYTES, 'read-zeroes': true },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 28, once: true }],
  });
  await bed.device('A', { endpoint: path });
  const guest = await connect(bed, path, 'virtio0');
  const write = guest.write(0, Buffer.alloc(512), 0);
  while (bed.engine.runState.isRunning) await bed.engine.host.clock.sleep(5);
  const event = bed.events.find((entry) => entry.event === 'BLOCK_IO_ERROR');
  assert.deepEqual(event?.data, {
    device: '',
    'node-name': 'A',
    operation: 'write',
    action: 'stop',
    nospace: true,
    reason: 'No space left on device',
    'qom-path': '/machine/peripheral/virtio0/virtio-backend',
  });
  assert.deepEqual(await bed.execute('query-status'), {
    status: 'io-error',
    singlestep: false,
    running: false,
  });
  const [disk] = (await bed.execute('query-block')) as Array<{ 'io-status': string }>;
  assert.equal(disk?.['io-status'], 'nospace');
  await bed.execute('cont');
  await write;
  await guest.close();
});

test('what fails while the guest does not run is tried again when it does, and not before', async (t) => {
  const bed = new EngineBed(t, { startStopped: true });
  const { runState } = bed.engine;
  runState.servesStopped = true;
  const path = bed.path('disk.sock');
  const once = { event: 'none', iotype: 'write', errno: 28, once: true };
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'A',
    image: { driver: 'null-co', size: DISK_BYTES },
    'inject-error': [once, once, once],
  });
  await bed.device('A', { endpoint: path });
  const guest = await connect(bed, path, 'virtio0');
  const failures = (): number => bed.events.filter(({ event }) => event === 'BLOCK_IO_ERROR').length;
  let isWritten = false;
  const write = guest.write(0, Buffer.alloc(512), 0).then(() => (isWritten = true));
  while (failures() === 0) await bed.engine.host.clock.sleep(5);
  await bed.engine.host.clock.sleep(50);
  assert.deepEqual([failures(), runState.status, isWritten], [1, 'prelaunch', false]);
  for (const count of [2, 3]) {
    await bed.execute('cont');
    while (runState.isRunning) await runState.change();
    assert.deepEqual([failures(), runState.status], [count, 'io-error']);
  }
  // A machine that begins anew is served; the request waits for its guest all the same.
  runState.reset();
  await bed.engine.host.clock.sleep(50);
  assert.deepEqual([runState.status, isWritten], ['prelaunch', false]);
  await bed.execute('cont');
  await write;
  await guest.close();
});

test('quit answers when all jobs are over; they come to rest first, once more where a guest ran', async (t) => {
  for (const isRunning of [true, false]) {
    const bed = new EngineBed(t, { host: withHeldClock(PATIENT_MS) });
    await bed.image('A');
    await bed.image('B');
    await bed.device('A');
    if (!isRunning) await bed.execute('stop');
    await bed.execute('blockdev-backup', { 'job-id': 'j', device: 'A', target: 'B', sync: 'full', speed: 1 });
    const before = bed.events.length;
    await bed.execute('quit');
    const told = bed.events
      .slice(before)
      .map(({ event, data }) => (data['status'] as string | undefined) ?? event);
    const rest = ['paused', 'running'];
    assert.deepEqual(told, [
      'SHUTDOWN',
      ...(isRunning ? rest : []),
      ...rest,
      ...['aborting', 'BLOCK_JOB_CANCELLED', 'concluded', 'null'],
    ]);
  }
});

test('an engine closes while a stopped guest has requests', { timeout: 60_000 }, async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('disk.sock');
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'A', size: DISK_BYTES });
  await bed.device('A', { endpoint: path });
  const guest = await connect(bed, path, 'virtio0');
  await bed.execute('stop');
  const write = guest.write(0, Buffer.alloc(512), 0);
  const lost = assert.rejects(write, { errno: 'EIO' });
  await bed.engine.host.clock.sleep(50);
  await bed.engine.close();
  await lost;
  await guest.close();
});

test('stop stops the guest also when its disk cannot be flushed', async (t) => {
  const bed = new EngineBed(t);
  const image = { driver: 'null-co', size: DISK_BYTES };
  const failing = [{ event: 'none', iotype: 'flush' }];
  await bed.engine.addNode({ driver: 'blkdebug', 'node-name': 'A', image, 'inject-error': failing });
  await bed.device('A');
  assert.deepEqual(await bed.execute('stop'), {});
  assert.equal(bed.engine.runState.status, 'paused');
});

test('an incoming disk takes no lock until it is exported, and then the other end may write', async (t) => {
  const here = new EngineBed(t);
  const there = new EngineBed(t, { incoming: true });
  const filename = here.path('a.qcow2');
  await createImage(here.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const options = { driver: 'qcow2', 'node-name': 'A', file: { driver: 'file', filename } };
  await here.engine.addNode(options);
  await here.device('A');
  await there.engine.addNode(options);
  await there.device('A');
  assert.deepEqual(await there.execute('query-status'), {
    status: 'inmigrate',
    singlestep: false,
    running: false,
  });
  const socket = there.path('nbd.sock');
  await there.execute('nbd-server-start', { addr: { type: 'unix', data: { path: socket } } });
  const add = { device: 'A', writable: true };
  assert.match(await there.refusal('nbd-server-add', add), /lock/);
  await here.engine.close();
  await there.execute('nbd-server-add', add);
  const client = await connect(there, socket, 'A');
  await client.write(0, Buffer.alloc(65536, 9), 0);
  await client.close();
  await there.guest('read -P 9 0 64k');
});

test('quit of a machine tells why it ends; a storage daemon deletes its exports first', async (t) => {
  const machine = new EngineBed(t);
  await machine.execute('quit');
  assert.deepEqual(machine.events, [{ event: 'SHUTDOWN', data: { guest: false, reason: 'host-qmp-quit' } }]);
  await machine.engine.quitting.promise;
  const daemon = new EngineBed(t, { kind: 'storage-daemon' });
  await daemon.engine.addNode({ driver: 'null-co', 'node-name': 'n' });
  await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: daemon.path('s') } } });
  await daemon.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'n' });
  await daemon.execute('quit');
  assert.deepEqual(daemon.events, [{ event: 'BLOCK_EXPORT_DELETED', data: { id: 'e' } }]);
  assert.match(await daemon.refusal('query-status'), /has not been found/);
});

test('a daemon whose exported disk cannot be flushed ends by quit, and its end tells', async (t) => {
  const faulty = new FaultyHost(createRealHost());
  const folder = scratch(t);
  const bed = new EngineBed(t, { kind: 'storage-daemon', host: faulty.host, folder });
  await bed.image('A');
  const path = bed.path('s');
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path } } });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'A', writable: true });
  // The overlay is held by the export alone, and ends with it.
  await bed.snapshot('A', 'B');
  const client = await connect(bed, path, 'A');
  await client.write(0, Buffer.alloc(65536, 9), 0);
  faulty.faults.add({ op: 'flush', file: 'B.qcow2', errno: 'ENOSPC' });
  await bed.execute('quit');
  await bed.engine.quitting.promise;
  await assert.rejects(bed.engine.close(), /No space left on device/);
});

test('the human monitor tells of disks and jobs', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const human = (line: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': line });
  assert.equal(
    await human('info block'),
    `B: ${bed.path('B.qcow2')} (qcow2)\r\n` +
      '    Attached to:      /machine/peripheral/virtio0/virtio-backend\r\n' +
      '    Cache mode:       writeback\r\n' +
      `    Backing file:     ${bed.path('A.qcow2')} (chain depth: 1)\r\n`,
  );
  assert.equal(
    await human('info block A'),
    `\r\nA: ${bed.path('A.qcow2')} (qcow2, read-only)\r\n    Cache mode:       writeback\r\n`,
  );
  assert.equal(await human('info block none'), '');
  // The newest node is the first.
  assert.match(String(await human('info block B')), /^B: /);
  assert.equal(await human('info block-jobs'), 'No active jobs\r\n');
  assert.equal(await human('info status'), 'VM status: running\r\n');
  assert.equal(await human('frobnicate'), "unknown command: 'frobnicate'\r\n");
});

test('the human monitor runs nothing that it does not understand whole', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const human = (line: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': line });
  for (const [line, what, name, path] of [
    ['stop now', 'extraneous characters at the end of line', 'stop|s', 'stop'],
    ['info status x', 'extraneous characters at the end of line', 'status', 'info status'],
    ['info block A B', 'extraneous characters at the end of line', 'block', 'info block'],
    ['info block -x', 'unsupported option -x', 'block', 'info block'],
    ['qemu-io -x B length', 'unsupported option -x', 'qemu-io', 'qemu-io'],
    ['qemu-io', 'block device name expected', 'qemu-io', 'qemu-io'],
    ['qemu-io B', 'string expected', 'qemu-io', 'qemu-io'],
    ['qemu-io B length more', 'extraneous characters at the end of line', 'qemu-io', 'qemu-io'],
  ])
    assert.equal(
      await human(line ?? ''),
      `${name}: ${what}\r\nTry "help ${path}" for more information\r\n`,
      line,
    );
  assert.equal(await human('qemu-io B "length'), 'unterminated string\r\n');
  assert.equal(await human('qemu-io B "\\x"'), "unsupported escape code: '\\x'\r\n");
  assert.equal(await human('help frobnicate'), "unknown command: 'frobnicate'\r\n");
  assert.equal(await human('help stop'), 'stop|s  -- stop emulation\r\n');
  assert.equal(await human('info status'), 'VM status: running\r\n', 'the wrong stop stopped nothing');
});

test("a command of the human monitor's qemu-io asks for no more than it needs", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B');
  const human = (line: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': line });
  for (const node of ['A', 'B']) {
    for (const command of ['length', 'read 0 4k', 'no such'])
      assert.equal(await human(`qemu-io ${node} "${command}"`), '', command);
    for (const command of ['write 0 4k', 'truncate 1M', 'discard 0 4k'])
      assert.match(
        String(await human(`qemu-io ${node} "${command}"`)),
        /^Permission conflict on node '[AB]': permissions 'write.*\r\n$/,
        command,
      );
  }
});

type Policy = 'report' | 'ignore' | 'stop' | 'enospc';

/** Request, errno, policy of its kind (default: none said), what is done. */
const FAILURES: ReadonlyArray<readonly [string, 5 | 28, Policy | undefined, 'report' | 'ignore' | 'stop']> = [
  ['read', 5, undefined, 'report'],
  ['read', 28, undefined, 'report'],
  ['read', 5, 'ignore', 'ignore'],
  ['read', 5, 'stop', 'stop'],
  ['read', 28, 'enospc', 'stop'],
  ['write', 5, undefined, 'report'],
  ['write', 28, undefined, 'stop'],
  ['write', 28, 'report', 'report'],
  ['write', 28, 'ignore', 'ignore'],
  ['write', 5, 'stop', 'stop'],
  ['write-zeroes', 5, 'ignore', 'ignore'],
  ['discard', 5, 'ignore', 'ignore'],
  ['flush', 5, 'ignore', 'ignore'],
  ['flush', 5, 'stop', 'stop'],
];

test('a request that fails is reported, ignored or tried again as its policy says, and told', async (t) => {
  for (const [kind, errno, policy, action] of FAILURES) {
    const bed = new EngineBed(t);
    await bed.engine.addNode({
      driver: 'blkdebug',
      'node-name': 'A',
      discard: 'unmap',
      image: { driver: 'null-co', size: DISK_BYTES },
      'inject-error': [{ event: 'none', iotype: kind, errno, once: true }],
    });
    const operation = kind === 'read' ? 'read' : 'write';
    await bed.engine.addDevice('A', {
      id: 'virtio0',
      endpoint: { type: 'unix', path: bed.path('s') },
      ...(policy && (operation === 'read' ? { readErrors: policy } : { writeErrors: policy })),
    });
    const guest = await connect(bed, bed.path('s'), 'virtio0');
    const requests: Readonly<Record<string, () => Promise<void>>> = {
      read: () => guest.read(0, Buffer.alloc(512)),
      write: () => guest.write(0, Buffer.alloc(512), 0),
      'write-zeroes': () => guest.writeZeroes(0, 512, 0),
      discard: () => guest.trim(0, 4096),
      flush: () => guest.flush(),
    };
    const what = `${kind}, errno ${errno}, ${policy ?? 'no policy'}`;
    const done = requests[kind]?.().then(
      () => 'done',
      () => 'failed',
    );
    if (action === 'stop') {
      while (bed.engine.runState.isRunning) await bed.engine.host.clock.macrotask();
      const [disk] = (await bed.execute('query-block')) as Array<{ 'io-status': string }>;
      assert.equal(disk?.['io-status'], errno === 28 ? 'nospace' : 'failed', what);
      assert.match(
        (await bed.execute('human-monitor-command', { 'command-line': 'info block' })) as string,
        new RegExp(`I/O status: +${errno === 28 ? 'nospace' : 'failed'}`),
      );
      assert.equal(
        await bed.execute('human-monitor-command', { 'command-line': 'info status' }),
        'VM status: paused (io-error)\r\n',
      );
      await bed.execute('cont');
      const [again] = (await bed.execute('query-block')) as Array<{ 'io-status': string }>;
      assert.equal(again?.['io-status'], 'ok', what);
    }
    assert.equal(await done, action === 'report' ? 'failed' : 'done', what);
    const reason = errno === 28 ? 'No space left on device' : 'Input/output error';
    const data = {
      ...{ device: '', 'node-name': 'A', operation, action, nospace: errno === 28, reason },
      'qom-path': '/machine/peripheral/virtio0/virtio-backend',
    };
    const states = action === 'stop' ? ['STOP', 'RESUME'].map((event) => ({ event, data: {} })) : [];
    assert.deepEqual(bed.events, [{ event: 'BLOCK_IO_ERROR', data }, ...states], what);
    await guest.close();
  }
});

test('an error that is met at once follows the policy too', async (t) => {
  const bed = new EngineBed(t);
  await bed.engine.addNode({ driver: 'null-co', 'node-name': 'A', size: DISK_BYTES });
  const path = bed.path('s');
  const ignoring = { readErrors: 'ignore', writeErrors: 'ignore' } as const;
  await bed.engine.addDevice('A', { id: 'virtio0', endpoint: { type: 'unix', path }, ...ignoring });
  const guest = await connect(bed, path, 'virtio0');
  const { io } = bed.engine.graph.node('A');
  const fail = (): never => {
    throw errnoError('EIO');
  };
  Object.assign(io, { tryRead: fail, tryWrite: fail, write: fail });
  await guest.read(0, Buffer.alloc(512));
  await guest.write(0, Buffer.alloc(512), 0);
  assert.deepEqual(
    bed.events.map(({ data }) => [data['operation'], data['action']]),
    [['read', 'ignore'], ['write', 'ignore']],
  ); // prettier-ignore
  await guest.close();
});

test('a write that is to be durable waits for a flush: all do on a disk without a write cache', async (t) => {
  for (const writeCache of [true, false]) {
    const bed = new EngineBed(t);
    const filename = bed.path('A.qcow2');
    await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
    const image = { driver: 'file', filename };
    const file = { driver: 'blkdebug', image, 'inject-error': [{ event: 'none', iotype: 'flush' }] };
    await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
    const path = bed.path('s');
    await bed.engine.addDevice('A', { id: 'virtio0', writeCache, endpoint: { type: 'unix', path } });
    const guest = await connect(bed, path, 'virtio0');
    const isDurable = (request: Promise<void>): Promise<boolean> =>
      request.then(
        () => false,
        () => true,
      );
    assert.equal(await isDurable(guest.write(0, Buffer.alloc(512), 0)), !writeCache);
    assert.equal(await isDurable(guest.writeZeroes(0, 512, 0)), !writeCache);
    assert.equal(await isDurable(guest.write(0, Buffer.alloc(512), CommandFlag.fua)), true);
    assert.equal(await isDurable(guest.writeZeroes(0, 512, CommandFlag.fua)), true);
    const [disk] = (await bed.execute('query-block')) as Array<{ inserted: { cache: object } }>;
    assert.deepEqual(disk?.inserted.cache, { 'no-flush': false, direct: false, writeback: writeCache });
    assert.match(
      (await bed.execute('human-monitor-command', { 'command-line': 'info block' })) as string,
      writeCache ? /Cache mode: +writeback/ : /Cache mode: +writethrough/,
    );
    await guest.close();
    await assert.rejects(bed.engine.close(), { errno: 'EIO' });
  }
});

test('others may write to a disk only where its device shares it', async (t) => {
  for (const shareRw of [false, true]) {
    const bed = new EngineBed(t);
    await bed.image('A');
    await bed.engine.addDevice('A', { id: 'virtio0', shareRw });
    await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('s') } } });
    const add = { device: 'A', writable: true };
    if (shareRw) await bed.execute('nbd-server-add', add);
    else assert.match(await bed.refusal('nbd-server-add', add), /^Permission conflict on node 'A'/);
    await assert.rejects(bed.engine.addDevice('A', { id: 'virtio0' }), { kind: 'exists' });
  }
});

test('stop and cont are told when they change something; before a migration they are remembered', () => {
  const events: string[] = [];
  const emit = (event: string): void => void events.push(event);
  const running = new RunState({ stopped: false, incoming: false }, emit);
  running.resume();
  assert.deepEqual([running.stop(), running.stop(), running.status], [true, false, 'paused']);
  running.stopForError();
  assert.equal(running.status, 'paused');
  running.resume();
  running.resume();
  running.stopForError();
  assert.deepEqual(events, ['STOP', 'RESUME', 'STOP']);
  events.length = 0;
  for (const stopped of [true, false]) {
    const incoming = new RunState({ stopped, incoming: true }, emit);
    assert.deepEqual([incoming.status, incoming.startsAfterMigration], ['inmigrate', !stopped]);
    assert.deepEqual([incoming.stop(), incoming.startsAfterMigration], [false, false]);
    incoming.resume();
    assert.deepEqual([incoming.status, incoming.startsAfterMigration], ['inmigrate', true]);
  }
  assert.deepEqual(events, []);
});

test('statistics count what was done, what failed, and how long it took', async (t) => {
  const bed = new EngineBed(t);
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'A',
    discard: 'unmap',
    image: { driver: 'null-co', size: DISK_BYTES, 'read-zeroes': true },
    'inject-error': [{ event: 'none', iotype: 'write', errno: 5, once: true }],
    'x-delay': [{ iotype: 'read', 'delay-ms': 20 }],
  });
  const path = bed.path('s');
  await bed.device('A', { endpoint: path });
  const guest = await connect(bed, path, 'virtio0');
  await assert.rejects(guest.write(0, Buffer.alloc(512), 0), { errno: 'EIO' });
  await guest.write(0, Buffer.alloc(1024), 0);
  await guest.read(0, Buffer.alloc(4096));
  await guest.trim(0, 65536);
  await guest.flush();
  const [disk] = (await bed.execute('query-blockstats')) as Array<{ stats: Record<string, number> }>;
  const { stats } = disk ?? { stats: {} };
  const counted = Object.fromEntries(
    ['rd', 'wr', 'unmap', 'flush'].map((kind) => [
      kind,
      [`${kind}_operations`, `failed_${kind}_operations`, `${kind}_bytes`].map((name) => stats[name]),
    ]),
  );
  assert.deepEqual(counted, {
    rd: [1, 0, 4096],
    wr: [1, 1, 1024],
    unmap: [1, 0, 65536],
    flush: [1, 0, undefined],
  });
  // A timer counts from the turn of the loop in which it was set, so it may fire some milliseconds early.
  assert.ok((stats['rd_total_time_ns'] ?? 0) >= 10_000_000);
  assert.equal(stats['wr_highest_offset'], 65536);
  await guest.close();
});

test('zeroes that cannot be fast are refused to the guest, which is no error of the disk', async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('s');
  await bed.image('A');
  await bed.engine.addDevice('A', { id: 'virtio0', writeErrors: 'stop', endpoint: { type: 'unix', path } });
  const guest = await connect(bed, path, 'virtio0');
  await guest.write(0, Buffer.alloc(65536, 7), 0);
  await assert.rejects(guest.writeZeroes(512, 512, CommandFlag.fastZero), { kind: 'unsupported' });
  assert.deepEqual(bed.events, []);
  await guest.close();
});

test('the first of several errors is the status of the disk, and stops the guest once', async (t) => {
  const bed = new EngineBed(t);
  const path = bed.path('s');
  await bed.engine.addNode({
    driver: 'blkdebug',
    'node-name': 'A',
    image: { driver: 'null-co', size: DISK_BYTES },
    'inject-error': [5, 28].map((errno) => ({ event: 'none', iotype: 'write', errno, once: true })),
  });
  await bed.engine.addDevice('A', { id: 'virtio0', writeErrors: 'stop', endpoint: { type: 'unix', path } });
  const guest = await connect(bed, path, 'virtio0');
  const writes = [0, 512].map((offset) => guest.write(offset, Buffer.alloc(512), 0));
  while (bed.events.length < 3) await bed.engine.host.clock.macrotask();
  const [disk] = (await bed.execute('query-block')) as Array<{ 'io-status': string }>;
  assert.equal(disk?.['io-status'], 'failed');
  await bed.execute('cont');
  await Promise.all(writes);
  const names = bed.events.map(({ event }) => event);
  assert.deepEqual(names, ['BLOCK_IO_ERROR', 'STOP', 'BLOCK_IO_ERROR', 'RESUME']);
  await guest.close();
});

test('a write that is to be durable is not done at once, which would leave out its flush', async (t) => {
  for (const writeCache of [true, false]) {
    const bed = new EngineBed(t);
    await bed.image('A');
    const { backend } = await bed.engine.addDevice('A', { id: 'virtio0', writeCache });
    await backend.write(0, Buffer.alloc(65536, 1));
    assert.equal(backend.tryWrite(0, Buffer.alloc(512), Flag.fua), false);
    assert.equal(backend.tryWrite(0, Buffer.alloc(512), Flag.none), writeCache);
  }
});

test('where a reset is an end, and the end a pause, the machine must be reset before it goes on', async (t) => {
  const bed = new EngineBed(t, { actions: { shutdown: 'pause' } });
  await bed.execute('set-action', { reboot: 'shutdown', panic: 'none' });
  await bed.execute('system_reset');
  const status = async (): Promise<unknown> =>
    ((await bed.execute('query-status')) as { status: string }).status;
  assert.equal(await status(), 'shutdown');
  assert.equal(await bed.refusal('cont'), 'Resetting the Virtual Machine is required');
  assert.deepEqual(await bed.execute('stop'), {});
  assert.deepEqual(
    bed.events.map(({ event, data }) => [event, data['reason']]),
    [
      ['SHUTDOWN', 'host-qmp-system-reset'],
      ['STOP', undefined],
    ],
  );
  await bed.execute('set-action', { reboot: 'reset' });
  await bed.execute('system_reset');
  assert.equal(await status(), 'prelaunch');
  await bed.execute('cont');
  assert.equal(await status(), 'running');
  assert.equal(
    await bed.refusal('set-action', { reboot: 'foo' }),
    "Parameter 'reboot' does not accept value 'foo'",
  );
});

test('where a reset is an end, the machine ends', async (t) => {
  const bed = new EngineBed(t, { actions: { reboot: 'shutdown' } });
  await bed.execute('system_reset');
  await bed.engine.quitting.promise;
  assert.deepEqual(
    bed.events.map(({ event }) => event),
    ['SHUTDOWN'],
  );
});

test('only a machine with power states could be woken up', async (t) => {
  for (const [machine, why] of [
    ['q35', 'Unable to wake up: guest is not in suspended state'],
    ['none', 'wake-up from suspend is not supported by this guest'],
  ] as const)
    assert.equal(await new EngineBed(t, { machine }).refusal('system_wakeup'), why);
});
