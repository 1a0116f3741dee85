import assert from 'node:assert/strict';
import { mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { MemoryTarget } from '../../../test/kit/memory-target.js';
import { RingDriver } from '../../../test/kit/ring-driver.js';
import {
  type FrontEndProperties,
  GUEST_BASE,
  newEvent,
  USER_BASE,
  VhostFrontEnd,
} from '../../../test/kit/vhost-front-end.js';
import { defined } from '../../base/assert.js';
import type { SharedMemory } from '../../host/sharing.js';
import { createRealHost } from '../../host/real.js';
import { LostChanges } from '../nbd/lost-changes.js';
import { encodeInflight, encodeLog, encodeUint64, encodeVringState } from './codec.js';
import { Feature, Request } from './constants.js';
import { InflightQueue } from './inflight.js';
import { PackedInflight } from './packed-inflight.js';
import { VhostServer } from './server.js';

const MiB = 1024 * 1024;
const host = createRealHost();
const sharing = defined(host.sharing, 'this machine shares memory');

interface Bed {
  target: MemoryTarget;
  server: VhostServer;
  path: string;
  said: string[];
  start(more?: Partial<FrontEndProperties>): Promise<VhostFrontEnd>;
  connect(): Promise<VhostFrontEnd>;
}

async function bedFor(t: TestContext, queueCount = 1): Promise<Bed> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-vhost-'));
  const path = join(folder, 'disk.vhost');
  const target = new MemoryTarget(MiB);
  const said: string[] = [];
  const changes = new LostChanges<object>();
  const lost = {
    add: (change: Parameters<typeof changes.add>[1]) => changes.add(target, change),
    overlapping: (offset: number, lengthBytes: number) => changes.overlapping(target, offset, lengthBytes),
  };
  const disk = { target, writable: true, blockSizeBytes: 512, queueCount, serial: 'disk', lost };
  const server = await VhostServer.listen(
    host,
    { type: 'unix', path },
    { disk, onBroken: (text) => said.push(text) },
  );
  const frontEnds: VhostFrontEnd[] = [];
  const kept = (frontEnd: VhostFrontEnd): VhostFrontEnd => {
    frontEnds.push(frontEnd);
    return frontEnd;
  };
  t.after(async () => {
    target.release();
    for (const frontEnd of frontEnds) frontEnd.close();
    await server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    ...{ target, server, path, said },
    start: async (more = {}) => kept(await VhostFrontEnd.start({ host, path, ...more })),
    connect: async () => kept(await VhostFrontEnd.connect({ host, path })),
  };
}

/** What this process has open for events, memory and connections. */
function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}

function table(
  regions: ReadonlyArray<readonly [guest: bigint, length: bigint, user: bigint, offset: bigint]>,
): Buffer {
  const payload = Buffer.alloc(8 + 32 * regions.length);
  payload.writeUInt32LE(regions.length, 0);
  regions.forEach((region, i) =>
    region.forEach((value, k) => payload.writeBigUInt64LE(value, 8 + 32 * i + 8 * k)),
  );
  return payload;
}

const region = (of: bigint): readonly [bigint, bigint, bigint, bigint] => [
  BigInt(GUEST_BASE),
  of,
  BigInt(USER_BASE),
  0n,
];

const WRONG: ReadonlyArray<readonly [string, (guest: VhostFrontEnd, folder: string) => void, RegExp]> = [
  ['an unknown message', (guest) => guest.send(99), /unknown message 99/],
  ['another version', (guest) => guest.send(1, undefined, [], 2), /version/],
  ['a long message', (guest) => guest.send(1, Buffer.alloc(4096)), /too long/],
  ['a short message', (guest) => guest.send(Request.setFeatures, Buffer.alloc(4)), /4 bytes/],
  [
    'features that are not offered',
    (guest) => guest.send(Request.setFeatures, encodeUint64(1n << 50n)),
    /features/,
  ],
  [
    'protocol features that are not offered',
    (guest) => guest.send(Request.setProtocolFeatures, encodeUint64(1n << 40n)),
    /protocol features/,
  ],
  [
    'a queue that is not there',
    (guest) => guest.send(Request.setVringBase, encodeVringState(1, 0)),
    /no queue 1/,
  ],
  ['a queue of three', (guest) => guest.send(Request.setVringNum, encodeVringState(0, 3)), /a queue of 3/],
  [
    'a queue beyond 16 bits',
    (guest) => guest.send(Request.setVringBase, encodeVringState(0, 65536)),
    /at 65536/,
  ],
  [
    'memory without a descriptor',
    (guest) => guest.send(Request.setMemTable, table([region(4096n)])),
    /missing/,
  ],
  [
    'memory beyond its file',
    (guest) =>
      guest.send(Request.setMemTable, table([region(BigInt(guest.memory.length) + 1n)]), [guest.memoryFd]),
    /does not lie in its file/,
  ],
  [
    'memory that wraps around',
    (guest) => guest.send(Request.setMemTable, table([region((1n << 53n) - 1n)]), [guest.memoryFd]),
    /wraps around/,
  ],
  [
    'memory of no bytes',
    (guest) => guest.send(Request.setMemTable, table([region(0n)]), [guest.memoryFd]),
    /no bytes/,
  ],
  [
    'regions that overlap',
    (guest) =>
      guest.send(Request.setMemTable, table([region(8192n), region(4096n)]), [
        guest.memoryFd,
        guest.memoryFd,
      ]),
    /overlap/,
  ],
  [
    'more regions than there may be',
    (guest) => guest.send(Request.setMemTable, Buffer.from([9, 0, 0, 0, 0, 0, 0, 0])),
    /9 regions/,
  ],
  [
    'a kick that is a file',
    (guest, folder) => {
      writeFileSync(join(folder, 'file'), 'x');
      const fd = openSync(join(folder, 'file'), 'r');
      guest.send(Request.setVringKick, encodeUint64(0n), [fd]);
      sharing.close(fd);
    },
    /no eventfd/,
  ],
  [
    'a log that is larger than a view',
    (guest) => {
      const lengthBytes = 1024 * MiB + 4096;
      const fd = sharing.create('log', lengthBytes);
      guest.send(Request.setLogBase, encodeLog(lengthBytes, 0), [fd]);
      sharing.close(fd);
    },
    /a log of 1073745920 bytes/,
  ],
  ['a queue without memory', (guest) => sendWithEvent(guest, Request.setVringKick), /without memory/],
  ['a queue to be polled', (guest) => guest.send(Request.setVringKick, encodeUint64(0x100n)), /polled/],
  ['a descriptor that nobody wants', (guest) => sendWithEvent(guest, Request.getFeatures), /no message/],
  ['a channel that is no socket', (guest) => sendWithEvent(guest, Request.setBackendReqFd), /descriptor/],
  [
    'memory for requests that is too short',
    (guest) =>
      guest.send(
        Request.setInflightFd,
        encodeInflight({ lengthBytes: 4096, fileOffset: 0, queueCount: 1, queueSize: 1024 }),
        [guest.memoryFd],
      ),
    /memory of 4096 bytes for requests/,
  ],
  [
    'another part of the configuration',
    (guest) => guest.send(Request.setConfig, Buffer.from([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7])),
    /not for writing/,
  ],
];

function sendWithEvent(guest: VhostFrontEnd, request: number): void {
  const fd = newEvent();
  guest.send(request, encodeUint64(0n), [fd]);
  sharing.close(fd);
}

test('what no front-end may say ends its connection, and nothing of it is kept', async (t) => {
  const bed = await bedFor(t);
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-vhost-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const before = openDescriptors();
  for (const [what, say, message] of WRONG) {
    const guest = await VhostFrontEnd.connect({ host, path: bed.path });
    say(guest, folder);
    await guest.closed();
    guest.close();
    assert.match(bed.said.splice(0).join('\n'), message, what);
  }
  const guest = await VhostFrontEnd.start({ host, path: bed.path });
  assert.equal(await guest.write(0, Buffer.alloc(512, 7)), 0);
  guest.close();
  // The server hears of the end in a later turn.
  while (bed.server.isConnected || openDescriptors() > before) await host.clock.macrotask();
  assert.ok(openDescriptors() <= before);
});

test('a chain that cannot be one ends the connection, and the next front-end is served', async (t) => {
  const bed = await bedFor(t);
  const guest = await bed.start();
  const { driver } = guest.queue(0);
  assert.ok(driver instanceof RingDriver);
  driver.offer(1000);
  guest.queue(0).kick.signal();
  await guest.closed();
  assert.match(bed.said[0] ?? '', /no descriptor 1000/);
  assert.equal(await (await bed.start()).write(0, Buffer.alloc(512)), 0);
});

test('a request fails with the disk, and does not when that is well again', async (t) => {
  const bed = await bedFor(t);
  const guest = await bed.start();
  bed.target.fails = true;
  assert.equal(await guest.write(0, Buffer.alloc(512)), 1);
  assert.equal(await guest.request(4, 0), 1);
  bed.target.fails = false;
  assert.equal(await guest.write(0, Buffer.alloc(512)), 0);
});

const FORMS = [
  ['split', Feature.version1 | Feature.indirect],
  ['packed', Feature.version1 | Feature.indirect | Feature.packedRing],
] as const;

for (const [form, features] of FORMS) {
  test(`a ${form} queue that is stopped has answered all that it took, and goes on there`, async (t) => {
    const bed = await bedFor(t);
    const guest = await bed.start({ features });
    bed.target.hold();
    const begun = guest.begin(4, 0);
    await until(() => bed.target.began.length === 1);
    const base = guest.ask(Request.getVringBase, encodeVringState(0, 0));
    // What comes meanwhile is answered later.
    guest.send(Request.getFeatures);
    await host.clock.sleep(20);
    assert.equal(guest.bytes(begun.status)[0], 0xff);
    bed.target.release();
    // Of a packed ring, two descriptors and the first round on both sides.
    const stands = form === 'split' ? 1 : 0x8002_8002;
    assert.deepEqual(await base, encodeVringState(0, stands));
    guest.collect();
    assert.deepEqual(await guest.end(begun), { status: 0, filledBytes: 1 });
    guest.startQueue(0, guest.queue(0).driver, stands);
    assert.equal(await guest.write(0, Buffer.alloc(512, 3)), 0);
    assert.equal(bed.target.content[0], 3);
  });

  test(`what fails in a ${form} queue that stops for a failure is kept, and begins again with the queue`, async (t) => {
    const bed = await bedFor(t);
    const guest = await bed.start({ wantsInflight: true, features });
    const { fd, description } = defined(guest.inflight, 'memory for requests');
    const memory = sharing.map(fd, 0, description.lengthBytes);
    t.after(() => memory.unmap());
    bed.target.hold();
    const begun = guest.begin(4, 0);
    await until(() => bed.target.began.length === 1);
    bed.target.stopGuest();
    const base = guest.ask(Request.getVringBase, encodeVringState(0, 0));
    await until(() => bed.target.signal?.isCancelled === true);
    bed.target.fails = true;
    bed.target.release();
    const stands = (await base).readUInt32LE(4);
    guest.collect();
    assert.equal(guest.bytes(begun.status)[0], 0xff, 'no guest that is stopped hears of it');
    assert.equal(marked(form, memory), 1);
    bed.target.fails = false;
    guest.startQueue(0, guest.queue(0).driver, stands);
    assert.equal((await guest.end(begun)).status, 0);
    assert.equal(bed.target.flushes, 1);
    assert.equal(marked(form, memory), 0);
  });

  test(`of a ${form} queue who comes back repeats what was under way, after what its predecessor had begun`, async (t) => {
    const bed = await bedFor(t);
    const first = await bed.start({ wantsInflight: true, features });
    const inflight = defined(first.inflight, 'memory for requests');
    assert.equal(await first.write(0, Buffer.alloc(512, 1)), 0);
    bed.target.hold();
    const data = first.allocate(512);
    first.bytes(data).fill(2);
    const write = first.begin(1, 0, { out: [data] });
    const other = first.begin(4, 0);
    await until(() => bed.target.began.length === 2);
    const memory = sharing.map(inflight.fd, 0, inflight.description.lengthBytes);
    const underWay = (): number => marked(form, memory);
    assert.equal(underWay(), 2);
    first.hangUp();
    await until(() => !bed.server.isConnected);

    bed.target.began.length = 0;
    // Its guest's memory is the same; what it says of the ring's place is not looked at.
    const drivers = first.queues.map(({ driver }) => driver);
    const second = await bed.start({ memoryFd: first.memoryFd, drivers, inflight, features });
    await until(() => bed.target.began.includes('flush 0'));
    assert.deepEqual(bed.target.began, ['flush 0'], 'the write waits for the one that is lost');
    bed.target.release();
    await until(() => underWay() === 0);
    memory.unmap();
    assert.deepEqual([...bed.target.content.subarray(0, 2)], [2, 2]);
    assert.equal(second.bytes(write.status)[0], 0);
    assert.equal(second.bytes(other.status)[0], 0);
  });
}

/** Requests of a queue of 64 that its memory says are under way. */
function marked(form: 'split' | 'packed', memory: SharedMemory): number {
  const kept = form === 'split' ? new InflightQueue(memory, 0, 64) : new PackedInflight(memory, 0, 64);
  return Array.from({ length: 64 }, (_, i) => i).filter((i) => kept.isInFlight(i)).length;
}

for (const [form, agreed] of FORMS)
  test(`every page that is written is marked in the log, with a ${form} ring`, async (t) => {
    const bed = await bedFor(t);
    const guest = await bed.start({ features: agreed });
    const pages = guest.memory.length / 4096 + GUEST_BASE / 4096;
    const lengthBytes = Math.ceil(pages / 8 / 4096) * 4096;
    const fd = sharing.create('log', lengthBytes);
    const log = sharing.map(fd, 0, lengthBytes);
    const bits = log.view(0, lengthBytes);
    const payload = Buffer.alloc(16);
    payload.writeBigUInt64LE(BigInt(lengthBytes), 0);
    await guest.ask(Request.setLogBase, payload, [fd]);
    sharing.close(fd);
    const isDirty = (address: number): boolean => {
      const page = Math.floor(address / 4096);
      return ((bits[Math.floor(page / 8)] ?? 0) & (1 << (page % 8))) !== 0;
    };
    const dirty = (): number =>
      bits.reduce((sum, byte) => sum + byte.toString(2).replace(/0/g, '').length, 0);

    await guest.read(0, 4096);
    assert.equal(dirty(), 0, 'nothing is logged before it is agreed');
    const features = agreed | Feature.logAll | Feature.protocolFeatures;
    guest.send(Request.setFeatures, encodeUint64(features));
    const { driver } = guest.queue(0);
    guest.send(Request.setVringAddr, guest.ringAddresses(0, driver, 1));
    await guest.askNumber(Request.getFeatures);

    for (const isHeld of [false, true]) {
      bits.fill(0);
      if (isHeld) bed.target.hold();
      const into = [guest.allocate(3 * 4096), guest.allocate(100 * 512)];
      const begun = guest.begin(0, 0, { into });
      if (isHeld) await until(() => bed.target.began.length > 0);
      bed.target.release();
      assert.equal((await guest.end(begun)).status, 0);
      for (const { address, lengthBytes: length } of into)
        for (let at = address; at < address + length; at += 512) assert.ok(isDirty(at), String(at));
      assert.ok(isDirty(begun.status.address), 'the status');
      assert.ok(
        isDirty(form === 'split' ? driver.places.used : driver.places.descriptors),
        'what is given back',
      );
      assert.ok(dirty() < 24);
    }
    bits.fill(0);
    assert.equal(await guest.write(0, Buffer.alloc(8192)), 0);
    assert.ok(dirty() <= 3, 'what is only read is not dirty');
    log.unmap();
  });

test('memory may be given and taken region by region, and replaced while requests use it', async (t) => {
  const bed = await bedFor(t);
  const guest = await bed.start();
  bed.target.hold();
  const begun = guest.begin(0, 0, { into: [guest.allocate(4096)] });
  await until(() => bed.target.began.length === 1);
  guest.sendTable();
  await guest.askNumber(Request.getFeatures);
  bed.target.release();
  assert.equal((await guest.end(begun)).status, 0);
  const added = Buffer.alloc(40);
  // The rings are at the beginning.
  const fileOffset = BigInt(guest.memory.length - 4096);
  [1n << 40n, 4096n, 1n << 41n, fileOffset].forEach((value, i) => added.writeBigUInt64LE(value, 8 + 8 * i));
  guest.send(Request.addMemReg, added, [guest.memoryFd]);
  // A kick may overtake a message.
  await guest.askNumber(Request.getFeatures);
  assert.equal(await guest.request(0, 0, { into: [{ address: 2 ** 40, lengthBytes: 4096 }] }), 0);
  guest.send(Request.remMemReg, added);
  await guest.askNumber(Request.getFeatures);
  guest.begin(0, 0, { into: [{ address: 2 ** 40, lengthBytes: 4096 }] });
  await guest.closed();
  assert.match(bed.said[0] ?? '', /no region/);
});

test('the write cache is told, and turned off and on', async (t) => {
  const bed = await bedFor(t);
  const guest = await bed.start();
  const wce = async (): Promise<number | undefined> => {
    const asked = Buffer.alloc(12 + 1);
    asked.writeUInt32LE(32, 0);
    asked.writeUInt32LE(1, 4);
    return (await guest.ask(Request.getConfig, asked))[12];
  };
  assert.equal(await wce(), 1);
  guest.send(Request.setConfig, Buffer.from([32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]));
  assert.equal(await wce(), 0);
  assert.equal(bed.target.writethrough, true);
});

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await host.clock.macrotask();
}
