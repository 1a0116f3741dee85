import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { createImage } from '../../src/block/create.js';
import type { JsonObject } from '../../src/schema/types.js';
import { DISK_BYTES, EngineBed, MiB } from '../engine/engine-bed.js';

/** What people do while a job runs; the situations of a public test plan (README.md). */

interface Kind {
  command: string;
  args: JsonObject;
  /** It has to be told to end. */
  hasReady?: boolean;
}

/** On A <-- B <-- C, the guest's disk, and an empty T. */
const KINDS: { readonly [name: string]: Kind } = {
  stream: { command: 'block-stream', args: { device: 'C' } },
  commit: { command: 'block-commit', args: { device: 'C', 'top-node': 'B', 'base-node': 'A' } },
  'active commit': { command: 'block-commit', args: { device: 'C', 'base-node': 'A' }, hasReady: true },
  mirror: { command: 'blockdev-mirror', args: { device: 'C', target: 'T', sync: 'full' }, hasReady: true },
  backup: { command: 'blockdev-backup', args: { device: 'C', target: 'T', sync: 'full' } },
};

const JOB = { 'job-id': 'j' };
/** So slow that it does not end by itself. */
const SLOW = { ...JOB, speed: 1 };

async function chain(context: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(context);
  await bed.chain('A', 'B', 'C');
  await bed.image('T');
  return bed;
}

/** What the chain holds, the guest having written nothing since. */
async function assertContent(bed: EngineBed): Promise<void> {
  for (const command of ['read -P 0x11 0 1M', 'read -P 0x21 1M 1M', 'read -P 0x22 2M 1M'])
    await bed.guest(command);
}

async function end(bed: EngineBed, { hasReady = false }: Kind, id = 'j'): Promise<void> {
  await bed.execute('block-job-set-speed', { device: id, speed: 0 });
  if (hasReady) {
    await bed.event('BLOCK_JOB_READY', id);
    await bed.execute('block-job-complete', { device: id });
  }
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', id))['error'], undefined);
}

for (const [name, kind] of Object.entries(KINDS)) {
  test(`while a ${name} runs what would disturb it is refused, and it ends well`, async (context) => {
    const bed = await chain(context);
    await bed.execute(kind.command, { ...kind.args, ...SLOW });
    const refused: Array<[string, JsonObject]> = [
      [kind.command, { ...kind.args, ...JOB }],
      ['block-commit', { ...JOB, device: 'C', 'base-node': 'A' }],
      ['blockdev-del', { 'node-name': 'C' }],
      ['blockdev-del', { 'node-name': 'A' }],
      ['block-job-complete', { device: 'j' }],
      ['job-dismiss', { id: 'j' }],
      ['job-finalize', { id: 'j' }],
    ];
    if (kind.args['target'] === 'T')
      refused.push(
        ['blockdev-del', { 'node-name': 'T' }],
        ['block_resize', { 'node-name': 'T', size: 2 * DISK_BYTES }],
        ['blockdev-backup', { 'job-id': 'k', device: 'A', target: 'T', sync: 'full' }],
        ['blockdev-snapshot', { node: 'T', overlay: 'A' }],
      );
    for (const [command, args] of refused) await bed.refusal(command, args);
    await end(bed, kind);
    await assertContent(bed);
  });

  test(`a ${name} goes on through stop and cont, and through a reset of the machine`, async (context) => {
    const bed = await chain(context);
    await bed.execute(kind.command, { ...kind.args, ...SLOW });
    await bed.execute('stop');
    await bed.execute('cont');
    await bed.execute('system_reset');
    await bed.guest('write -P 0x55 6M 64k');
    await bed.execute('stop');
    await end(bed, kind);
    await bed.execute('cont');
    await assertContent(bed);
    await bed.guest('read -P 0x55 6M 64k');
  });

  test(`a ${name} that the end of the program cuts off is begun again, and ends well`, async (context) => {
    const first = await chain(context);
    await first.execute(kind.command, { ...kind.args, ...SLOW });
    await first.guest('write -P 0x66 7M 64k');
    await first.engine.close();
    const bed = new EngineBed(context);
    const add = async (node: string, backing: string | null): Promise<void> => {
      const file = { driver: 'file', filename: first.path(`${node}.qcow2`) };
      await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': node, file, backing });
    };
    for (const [node, backing] of [
      ['A', null],
      ['B', 'A'],
      ['C', 'B'],
      ['T', null],
    ] as const)
      await add(node, backing);
    await bed.device('C');
    await bed.execute(kind.command, { ...kind.args, ...JOB });
    await end(bed, kind);
    await assertContent(bed);
    await bed.guest('read -P 0x66 7M 64k');
  });
}

test('the speed of a job is changed, to the least and to the most, and what is no speed is refused', async (context) => {
  const bed = await chain(context);
  await bed.execute('blockdev-mirror', { device: 'C', target: 'T', sync: 'full', ...SLOW });
  assert.equal(
    await bed.refusal('block-job-set-speed', { device: 'j', speed: -1 }),
    "Parameter 'speed' expects a non-negative value",
  );
  await assert.rejects(bed.execute('block-job-set-speed', { device: 'j', speed: 'x' }), /expected: integer/);
  for (const speed of [1, 1024, 2 ** 40, 0]) await bed.execute('block-job-set-speed', { device: 'j', speed });
  await end(bed, { command: '', args: {}, hasReady: true });
});

for (const name of ['active commit', 'mirror'])
  test(`a ${name} that rests when it is READY is completed, and ends once it goes on`, async (context) => {
    const bed = await chain(context);
    const kind = KINDS[name];
    assert.ok(kind);
    await bed.execute(kind.command, { ...kind.args, ...JOB });
    await bed.event('BLOCK_JOB_READY', 'j');
    await bed.execute('job-pause', { id: 'j' });
    await bed.execute('job-complete', { id: 'j' });
    await bed.guest('write -P 0x33 7M 64k');
    assert.ok(!bed.events.some(({ event }) => event === 'BLOCK_JOB_COMPLETED'));
    await bed.execute('job-resume', { id: 'j' });
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
    await assertContent(bed);
    await bed.guest('read -P 0x33 7M 64k');
  });

test('several jobs of several disks run at once, and are begun in one transaction', async (context) => {
  const bed = await chain(context);
  await bed.image('D');
  await bed.engine.addDevice('D', { id: 'virtio1' });
  for (const name of ['T2', 'T3', 'E']) await bed.image(name);
  const backup = (device: string, target: string, id: string): JsonObject => ({
    type: 'blockdev-backup',
    data: { 'job-id': id, device, target, sync: 'full', speed: 1 },
  });
  await bed.execute('transaction', { actions: [backup('C', 'T', 'j1'), backup('D', 'T2', 'j2')] });
  await bed.execute('blockdev-mirror', { 'job-id': 'j3', device: 'E', target: 'T3', sync: 'full' });
  await bed.event('BLOCK_JOB_READY', 'j3');
  for (const id of ['j1', 'j2']) await end(bed, { command: '', args: {} }, id);
  await bed.execute('block-job-complete', { device: 'j3' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j3');
  await assertContent(bed);
});

test('what is copied into a throttled node, or over copy-on-read, is what it was', async (context) => {
  for (const command of ['block-stream', 'block-commit']) {
    const bed = new EngineBed(context);
    await bed.execute('object-add', {
      ...{ 'qom-type': 'throttle-group', id: 'g', limits: { 'bps-write': 64 * MiB } },
    });
    await bed.image('A0');
    await bed.execute('blockdev-add', {
      ...{ driver: 'throttle', 'node-name': 'A', 'throttle-group': 'g', file: 'A0' },
    });
    await bed.device('A');
    await bed.guest('write -P 0x11 0 4M');
    await bed.snapshot('A', 'B');
    await bed.guest('write -P 0x21 1M 1M');
    await bed.snapshot('B', 'C');
    await bed.guest('write -P 0x22 2M 1M');
    await bed.execute('blockdev-add', { driver: 'copy-on-read', 'node-name': 'R', file: 'C' });
    await bed.execute('qom-set', { path: 'virtio0', property: 'drive', value: 'R' });
    const rest =
      command === 'block-commit' ? { device: 'R', 'top-node': 'B', 'base-node': 'A' } : { device: 'C' };
    await bed.execute(command, { ...JOB, ...rest });
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
    await assertContent(bed);
  }
});

test('a read-only disk is mirrored, and stays read-only', async (context) => {
  const bed = new EngineBed(context);
  await createImage(bed.engine.opener, bed.path('a'), 'qcow2', { sizeBytes: DISK_BYTES });
  const file = { driver: 'file', filename: bed.path('a') };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'A', file, 'read-only': true });
  await bed.device('A');
  await bed.image('T');
  await bed.execute('blockdev-mirror', { ...JOB, device: 'A', target: 'T', sync: 'full' });
  await end(bed, { command: '', args: {}, hasReady: true });
  const backend = bed.engine.devices.get('virtio0')?.backend;
  assert.deepEqual([backend?.node.name, backend?.isWritable], ['T', false]);
});

test('nobody but the mirror writes its target; the guest writes its source on', async (context) => {
  const bed = await chain(context);
  await bed.execute('blockdev-mirror', { ...JOB, device: 'C', target: 'T', sync: 'full' });
  await bed.event('BLOCK_JOB_READY', 'j');
  const write = (node: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': `qemu-io ${node} "write 0 4k"` });
  const before = bed.printed.length;
  const answer = await write('T');
  assert.match(`${String(answer)}${bed.printed.slice(before).join('\n')}`, /Permission conflict/);
  await bed.guest('write -P 0x44 7M 64k');
  await end(bed, { command: '', args: {}, hasReady: true });
  await bed.guest('read -P 0x44 7M 64k');
});

test('the device of a disk goes while its jobs run: they end, and its nodes can be deleted', async (context) => {
  for (const name of ['stream', 'backup']) {
    const bed = await chain(context);
    const kind = KINDS[name];
    assert.ok(kind);
    await bed.execute(kind.command, { ...kind.args, ...SLOW });
    assert.match(
      await bed.refusal('blockdev-del', { 'node-name': 'T' === kind.args['target'] ? 'T' : 'C' }),
      /in use/,
    );
    const device = bed.engine.devices.get('virtio0');
    await device?.unplug();
    bed.engine.devices.delete('virtio0');
    await bed.execute('block-job-set-speed', { device: 'j', speed: 0 });
    assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'j'))['error'], undefined);
    await bed.execute('blockdev-del', { 'node-name': 'T' });
  }
});

test('the program ends while jobs wait for a throttled disk', async (context) => {
  for (const [name, kind] of Object.entries(KINDS)) {
    const bed = new EngineBed(context);
    await bed.execute('object-add', {
      ...{ 'qom-type': 'throttle-group', id: 'g', limits: { 'bps-total': 1024 } },
    });
    await bed.image('A');
    await bed.device('A');
    await bed.guest('write -P 0x11 0 4M');
    await bed.execute('blockdev-add', {
      ...{ driver: 'throttle', 'node-name': 'A1', 'throttle-group': 'g', file: 'A' },
    });
    await bed.execute('qom-set', { path: 'virtio0', property: 'drive', value: 'A1' });
    await bed.snapshot('A1', 'B');
    await bed.snapshot('B', 'C');
    await bed.image('T');
    await bed.execute(kind.command, { ...kind.args, ...JOB });
    await bed.execute('stop');
    const before = performance.now();
    await bed.engine.close();
    assert.ok(performance.now() - before < 20_000, name);
  }
});
