import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { drawn } from '../kit/amount.js';
import { createRealHost } from '../../src/host/real.js';
import { Feature } from '../../src/wire/vhost-user/constants.js';
import { type FrontEndProperties, VhostFrontEnd } from '../kit/vhost-front-end.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';
import { GuestMachine, kernelFor } from './guest-machine.js';
import { assertUnbroken, ringOf } from './guest-ring.js';
import { answers, DISK_BYTES, quit, update } from './takeover-sides.js';

/** Guests that share their memory, through updates of the daemon. `UPDATES` of them. */
const UPDATES = Number(process.env['UPDATES'] ?? 3);
const BLOCK_BYTES = 4096;
const SECTORS = BLOCK_BYTES / 512;
const BLOCKS = 64;

function serving(t: TestContext, folder: string): Promise<Daemon> {
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'disk.qcow2', String(DISK_BYTES));
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'other.qcow2', String(DISK_BYTES));
  return Daemon.start(
    t,
    folder,
    [
      ...[process.execPath, PROGRAM, 'run', '-monitor', 'none'],
      ...['-blockdev', 'driver=qcow2,node-name=disk,file.driver=file,file.filename=disk.qcow2'],
      ...['-blockdev', 'driver=qcow2,node-name=other,file.driver=file,file.filename=other.qcow2'],
      ...['-export', 'vhost-user-blk,id=e,node-name=disk,writable=on,addr.type=unix,addr.path=disk.vhost'],
      ...['-device', 'virtio-blk-pci,drive=other,id=v1,num-queues=2,x-endpoint=vhost-user:other.vhost'],
      ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
    ],
    'qmp.sock',
    ['x-livedisk'],
  );
}

/** Writes blocks, each with a number of its own, several at a time, and reads and compares each again. */
class Guest {
  readonly #frontEnd: VhostFrontEnd;
  readonly #queueCount: number;
  readonly #newest = new Array<number>(BLOCKS).fill(0);
  #isStopped = false;
  #running: Promise<void> | undefined;
  writes = 0;

  constructor(frontEnd: VhostFrontEnd, queueCount: number) {
    this.#frontEnd = frontEnd;
    this.#queueCount = queueCount;
  }

  start(): void {
    const lanes = Array.from({ length: 4 }, (_, lane) => this.#work(lane));
    this.#running = Promise.all(lanes).then(() => undefined);
    this.#running.catch(() => undefined);
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
  }

  /** Has blocks of its own, and memory that it uses again and again. */
  async #work(lane: number): Promise<void> {
    const frontEnd = this.#frontEnd;
    const piece = frontEnd.allocate(BLOCK_BYTES);
    const queue = lane % this.#queueCount;
    const ask = async (type: number, block: number): Promise<void> => {
      const memory = { [type === 1 ? 'out' : 'into']: [piece], queue };
      assert.equal(await frontEnd.request(type, block * SECTORS, memory), 0);
    };
    for (let turn = 0; !this.#isStopped; turn++) {
      const block = ((turn * 7) % (BLOCKS / 4)) * 4 + lane;
      frontEnd.bytes(piece).writeUInt32LE(++this.writes, BLOCK_BYTES - 4);
      this.#newest[block] = this.writes;
      await ask(1, block);
      const other = ((turn * 5) % (BLOCKS / 4)) * 4 + lane;
      await ask(0, other);
      assert.equal(
        frontEnd.bytes(piece).readUInt32LE(BLOCK_BYTES - 4),
        this.#newest[other],
        `block ${other}`,
      );
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
}

const RING = Feature.version1 + Feature.indirect;
const FORMS: ReadonlyArray<readonly [string, Partial<FrontEndProperties>]> = [
  ['split rings', { features: RING }],
  [
    'split rings with event indexes and inflight memory',
    { features: RING + Feature.eventIndex, wantsInflight: true },
  ],
  ['packed rings', { features: RING + Feature.packedRing }],
  [
    'packed rings with event indexes and inflight memory',
    { features: RING + Feature.packedRing + Feature.eventIndex, wantsInflight: true },
  ],
];

for (const [form, properties] of drawn(FORMS))
  test(`front-ends with ${form} write and verify through ${UPDATES} updates, of an export and of a device`, async (t) => {
    if (skipWithout(t, 'qemu-img')) return;
    const folder = scratch(t);
    const daemon = await serving(t, folder);
    const host = createRealHost();
    const start = async (path: string, queueCount: number): Promise<[VhostFrontEnd, Guest]> => {
      const frontEnd = await VhostFrontEnd.start({
        ...{ host, path: join(folder, path), memoryBytes: 128 * 1024 * 1024, queueCount, ...properties },
      });
      const guest = new Guest(frontEnd, queueCount);
      t.after(async () => {
        await guest.stop().catch(() => undefined);
        frontEnd.close();
      });
      return [frontEnd, guest];
    };
    const both = [await start('disk.vhost', 1), await start('other.vhost', 2)];
    // One that waits for its turn, which it gets of whoever serves then.
    const late = VhostFrontEnd.start({ host, path: join(folder, 'disk.vhost'), ...properties });
    t.after(async () => (await late).close());
    let now = daemon.process;
    for (const [, guest] of both) guest.start();
    for (let count = 0; count < UPDATES; count++) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      const before = await answers(daemon);
      now = await update(t, folder, { daemon, serving: now });
      assert.deepEqual(withoutCounts(await answers(daemon)), withoutCounts(before));
      const written = both.map(([, guest]) => guest.writes);
      await new Promise((resolve) => setTimeout(resolve, 100));
      for (const [i, [, guest]] of both.entries())
        assert.ok(guest.writes > (written[i] ?? 0), 'it is served');
    }
    for (const [, guest] of both) await guest.stop();
    const [[first, guest]] = both as [[VhostFrontEnd, Guest]];
    first.hangUp();
    const next = await late;
    assert.equal(await next.write(0, Buffer.alloc(512, 7)), 0);
    assert.deepEqual(await next.read(0, 512), Buffer.alloc(512, 7));
    t.diagnostic(`${UPDATES} updates, ${guest.writes} writes`);
    await quit(daemon, now);
    for (const image of ['disk.qcow2', 'other.qcow2']) run(folder, 'qemu-img', 'check', '-q', image);
  });

/** Requests are counted while they are made, and images grow in their files. */
function withoutCounts(all: readonly unknown[]): unknown[] {
  return all.map(
    (answer) =>
      JSON.parse(
        JSON.stringify(answer, (key, value: unknown) =>
          ['stats', 'actual-size', 'virtual-size'].includes(key) ? undefined : value,
        ),
      ) as unknown,
  );
}

test('a machine whose memory is shared writes, is told of a resize, and goes on, through updates', async (t) => {
  if (skipWithout(t, 'qemu-img', 'qemu-system-x86_64')) return;
  const folder = scratch(t);
  const kernel = kernelFor(t, folder);
  if (!kernel) return;
  const daemon = await serving(t, folder);
  const guest = await GuestMachine.boot(kernel, { vhostUser: join(folder, 'disk.vhost') });
  t.after(() => guest.kill());
  await guest.reached(5);
  let now = daemon.process;
  for (let count = 0; count < UPDATES; count++) {
    now = await update(t, folder, { daemon, serving: now });
    await guest.reached(guest.lastRecord + 5);
  }
  await daemon.execute('block_resize', { 'node-name': 'disk', size: 2 * DISK_BYTES });
  await guest.sawSize(2 * DISK_BYTES);
  assert.equal(guest.hadError, false, guest.console.slice(-500));
  await guest.kill();
  const synced = guest.lastRecord;
  await quit(daemon, now);
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
  assertUnbroken(ringOf(folder, 'disk.qcow2'), synced, 'the disk');
});
