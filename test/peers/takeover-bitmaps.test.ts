import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { DISK_BYTES, quit, successor, update } from './takeover-sides.js';
import { KnowingWriter } from './takeover-writer.js';

const REGION_BYTES = 65536;

type Json = { [key: string]: unknown };

/** Whether what began at the start of the test is known still, and all that it has. */
interface Told {
  readonly status: unknown;
  readonly since: unknown;
  readonly starts: readonly number[];
}

async function told(daemon: Daemon, folder: string): Promise<Told> {
  const disks = [{ node: 'side', file: join(folder, 'changes.bits') }];
  const [{ status, since } = {}] = (await daemon.execute('x-bitmap-ensure', {
    name: 'changes',
    disks,
  })) as Json[];
  const { extents } = (await daemon.execute('x-bitmap-extents', { node: 'side', name: 'changes' })) as {
    extents: Array<{ start: number; length: number }>;
  };
  const starts = extents.flatMap(({ start, length }) =>
    Array.from({ length: length / REGION_BYTES }, (_, i) => start + i * REGION_BYTES),
  );
  return { status, since, starts };
}

const NODE = ['-blockdev', 'driver=raw,node-name=side,file.driver=file,file.filename=side.raw'];

function serving(t: TestContext, folder: string): Promise<Daemon> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', 'side.raw', String(DISK_BYTES));
  return Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', '-monitor', 'none', ...NODE],
      ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
      ...['-export', 'type=nbd,id=e,node-name=side,name=disk,writable=on'],
      ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ],
    'qmp.sock',
    ['x-livedisk'],
  );
}

test('a bitmap in a side file goes over with its bits, records what comes, and is right after a crash', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await serving(t, folder);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  const { since } = await told(daemon, folder);
  const at = (region: number): number => region * REGION_BYTES;
  await client.write(at(3), Buffer.alloc(4096, 1));
  await client.write(at(900), Buffer.alloc(4096, 1));
  // One that goes wrong changes nothing.
  const bad = await successor(t, folder);
  bad.kill('SIGKILL');
  await once(bad, 'exit');
  await assert.rejects(daemon.execute('x-takeover', { socket: 'next.sock' }));
  await client.write(at(5), Buffer.alloc(4096, 1));
  const next = await update(t, folder, { daemon, serving: daemon.process });
  assert.deepEqual(await told(daemon, folder), { status: 'usable', since, starts: [at(3), at(5), at(900)] });
  await client.write(at(500), Buffer.alloc(4096, 1));
  const last = await update(t, folder, { daemon, serving: next });
  assert.deepEqual((await told(daemon, folder)).starts, [3, 5, 500, 900].map(at));
  await client.write(at(700), Buffer.alloc(4096, 1));
  last.kill('SIGKILL');
  await once(last, 'exit');
  const words = [process.execPath, PROGRAM, 'run', ...NODE, '-qmp', 'unix:qmp2.sock,server=on,wait=off'];
  const again = await Daemon.start(t, folder, words, 'qmp2.sock', ['x-livedisk']);
  const now = await told(again, folder);
  assert.deepEqual([now.status, now.since], ['usable', since]);
  for (const region of [3, 5, 500, 700, 900]) assert.ok(now.starts.includes(at(region)), String(region));
  await again.execute('quit');
});

test('under a guest that writes, a bitmap in a side file has all that it wrote, through updates', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await serving(t, folder);
  await told(daemon, folder);
  const writer = new KnowingWriter(await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk'));
  writer.start();
  let now = daemon.process;
  for (let count = 0; count < 3; count++) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    now = await update(t, folder, { daemon, serving: now });
  }
  await writer.stop();
  const { status, starts } = await told(daemon, folder);
  assert.equal(status, 'usable');
  const has = new Set(starts);
  for (const at of writer.written()) assert.ok(has.has(at - (at % REGION_BYTES)), String(at));
  await writer.checkAll(await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk'));
  await quit(daemon, now);
});
