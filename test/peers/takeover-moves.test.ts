import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { Relay } from '../kit/relay.js';
import { BARE_MACHINE, Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { quit, update } from './takeover-sides.js';

/** Updates of a machine that has come from elsewhere, or was to go. */

/** The type of a message: src/wire/migration/messages.ts. */
const OWNED = 12;
const QUERIES = ['query-status', 'query-migrate', 'x-query-move'];

interface End {
  daemon: Daemon;
  serving: ChildProcess;
}

async function start(
  t: TestContext,
  { folder, image = 'disk' }: { folder: string; image?: string },
  name: string,
  ...more: string[]
): Promise<End> {
  const daemon = await Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', ...BARE_MACHINE],
      ...['-blockdev', `node-name=disk,driver=qcow2,file.driver=file,file.filename=${image}.qcow2`],
      ...['-device', 'virtio-blk,drive=disk,id=virtio0', '-qmp', `unix:${name}.qmp,server=on,wait=off`],
      ...more,
    ],
    `${name}.qmp`,
    ['x-livedisk'],
  );
  return { daemon, serving: daemon.process };
}

async function updated(t: TestContext, folder: string, end: End): Promise<void> {
  end.serving = await update(t, folder, end);
}

function makeDisk(t: TestContext): string {
  const folder = scratch(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', '16M');
  return folder;
}

/** Without the pace at which disks are copied, or were. */
async function answers({ daemon }: End): Promise<unknown> {
  const all = await Promise.all(QUERIES.map((query) => daemon.execute(query)));
  return JSON.parse(JSON.stringify(all, (key, value: unknown) => (key === 'rate' ? 0 : value)));
}

async function bitmapsOf({ daemon }: End): Promise<unknown> {
  const nodes = (await daemon.execute('query-named-block-nodes')) as Array<{ [member: string]: unknown }>;
  return nodes.find((node) => node['node-name'] === 'disk')?.['dirty-bitmaps'];
}

async function ownerOf({ daemon }: End): Promise<unknown> {
  return ((await daemon.execute('x-query-move')) as { owner: string }).owner;
}

async function until(ask: () => Promise<unknown>, wanted: unknown): Promise<void> {
  const end = Date.now() + 60_000;
  let last = await ask();
  while (last !== wanted && Date.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    last = await ask();
  }
  assert.deepEqual(last, wanted);
}

test('a source that has not heard asks a destination that was updated twice since', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  const [from, to] = ['link', 'move'].map((name) => ({ type: 'unix', path: join(folder, name) }) as const);
  assert.ok(from && to);
  const relay = await new Relay(createRealHost(), from, to).open();
  t.after(() => relay.close());
  const source = await start(t, { folder }, 'source');
  const destination = await start(t, { folder }, 'destination', '-incoming', 'unix:move');
  relay.cutBefore({ towards: 'client', type: OWNED });
  await source.daemon.execute('migrate', { uri: 'unix:link' });
  await until(async () => relay.isDown && ownerOf(source), 'unknown');
  await until(() => ownerOf(destination), 'here');
  const before = await answers(destination);
  await updated(t, folder, destination);
  await updated(t, folder, destination);
  assert.deepEqual(await answers(destination), before);
  await assert.rejects(
    destination.daemon.execute('migrate-incoming', { uri: 'unix:other' }),
    /already been started/,
  );
  relay.setDown(false);
  await until(() => ownerOf(source), 'there');
  assert.equal(((await source.daemon.execute('query-migrate')) as { status: string }).status, 'completed');
  // Nobody else asks.
  await until(
    () =>
      createRealHost()
        .net.connect(to)
        .then(String, () => 'nobody listens'),
    'nobody listens',
  );
  await quit(destination.daemon, destination.serving);
});

test('what a machine knows of moves that have ended is told after an update, and the next one goes', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  const source = await start(t, { folder }, 'source');
  await source.daemon.execute('migrate', { uri: 'unix:nobody' });
  await until(
    async () => ((await source.daemon.execute('query-migrate')) as { status: string }).status,
    'failed',
  );
  let before = await answers(source);
  await updated(t, folder, source);
  assert.deepEqual(await answers(source), before);
  await source.daemon.execute('migrate', { uri: `file:${join(folder, 'saved')}` });
  await until(
    async () => ((await source.daemon.execute('query-migrate')) as { status: string }).status,
    'completed',
  );
  await source.daemon.execute('cont');
  before = await answers(source);
  await updated(t, folder, source);
  assert.deepEqual(await answers(source), before);
  const destination = await start(t, { folder }, 'destination', '-incoming', 'unix:move');
  await source.daemon.execute('migrate', { uri: 'unix:move' });
  await until(() => ownerOf(source), 'there');
  await until(() => ownerOf(destination), 'here');
  await quit(destination.daemon, destination.serving);
});

test('a machine that has moved is not taken over, also after a reset', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  const source = await start(t, { folder }, 'source');
  const destination = await start(t, { folder }, 'destination', '-incoming', 'unix:move');
  await source.daemon.execute('migrate', { uri: 'unix:move' });
  await until(() => ownerOf(source), 'there');
  for (const why of ["the machine is 'postmigrate'", 'the machine has moved: the destination has it']) {
    const { refuses } = (await source.daemon.execute('x-takeover', { 'dry-run': true })) as {
      refuses: string[];
    };
    assert.deepEqual(refuses, [why]);
    await source.daemon.execute('system_reset');
  }
  await quit(destination.daemon, destination.serving);
});

test('a move with its disks keeps a machine from being taken over while they are copied, and is told of afterwards', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'there.qcow2', '16M');
  const source = await start(t, { folder }, 'source');
  await source.daemon.execute('human-monitor-command', {
    'command-line': 'qemu-io -d virtio0/virtio-backend "write -P 7 0 8M"',
  });
  const destination = await start(
    t,
    { folder, image: 'there' },
    'destination',
    '-incoming',
    'unix:move',
    ...[
      '-nbd-server',
      'addr.type=unix,addr.path=nbd.sock',
      '-export',
      'type=nbd,id=e,node-name=disk,name=virtio0,writable=on',
    ],
  );
  const server = { type: 'unix', path: 'nbd.sock' };
  await source.daemon.execute('x-move', { uri: 'unix:move', storage: { server, speed: 65536 } });
  const { refuses } = (await source.daemon.execute('x-takeover', { 'dry-run': true })) as {
    refuses: string[];
  };
  assert.ok(refuses.includes('a migration is under way'), String(refuses));
  await source.daemon.execute('x-move-cancel');
  await source.daemon.event('X_MOVE_STAGE', { stage: 'cancelled' });
  await until(async () => ((await source.daemon.execute('query-jobs')) as unknown[]).length, 0);
  const before = await answers(source);
  await updated(t, folder, source);
  assert.deepEqual(await answers(source), before);
  await source.daemon.execute('x-move', { uri: 'unix:move', storage: { server } });
  await until(() => ownerOf(source), 'there');
  await until(() => ownerOf(destination), 'here');
  const arrived = await answers(destination);
  await updated(t, folder, destination);
  assert.deepEqual(await answers(destination), arrived);
  await quit(destination.daemon, destination.serving);
});

test('bitmaps that came with a machine go over though its image, which is to keep them, is not its own yet', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = makeDisk(t);
  const source = await start(t, { folder }, 'source');
  const destination = await start(t, { folder }, 'destination', '-S', '-incoming', 'unix:move');
  const capabilities = ['dirty-bitmaps', 'late-block-activate'].map((capability) => ({
    capability,
    state: true,
  }));
  for (const { daemon } of [source, destination])
    await daemon.execute('migrate-set-capabilities', { capabilities });
  const bitmap = { node: 'disk', persistent: true };
  await source.daemon.execute('block-dirty-bitmap-add', { ...bitmap, name: 'came' });
  await source.daemon.execute('human-monitor-command', {
    'command-line': 'qemu-io -d virtio0/virtio-backend "write 0 1M"',
  });
  await source.daemon.execute('migrate', { uri: 'unix:move' });
  await until(() => ownerOf(source), 'there');
  await until(() => ownerOf(destination), 'here');
  await destination.daemon.execute('block-dirty-bitmap-add', { ...bitmap, name: 'added', disabled: true });
  const before = await bitmapsOf(destination);
  await updated(t, folder, destination);
  assert.deepEqual(await bitmapsOf(destination), before);
  await destination.daemon.execute('cont');
  assert.deepEqual(await bitmapsOf(destination), before);
  await quit(destination.daemon, destination.serving);
  const { 'format-specific': info } = JSON.parse(
    run(folder, 'qemu-img', 'info', '-U', '--output=json', 'disk.qcow2'),
  ) as { 'format-specific': { data: { bitmaps: Array<{ name: string; flags: string[] }> } } };
  const stored = info.data.bitmaps.map(({ name, flags }) => `${name} ${flags.join()}`);
  assert.deepEqual(stored.sort(), ['added ', 'came auto']);
});
