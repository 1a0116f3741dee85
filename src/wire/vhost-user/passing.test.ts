import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { MemoryTarget } from '../../../test/kit/memory-target.js';
import { dup, type FrontEndProperties, VhostFrontEnd } from '../../../test/kit/vhost-front-end.js';
import { defined } from '../../base/assert.js';
import { createRealHost } from '../../host/real.js';
import { LostChanges } from '../nbd/lost-changes.js';
import { encodeMessage, encodeUint64 } from './codec.js';
import { Feature, Request } from './constants.js';
import { VhostServer } from './server.js';

const MiB = 1024 * 1024;
const host = createRealHost();

class Bed {
  readonly #t: TestContext;
  readonly #folder = mkdtempSync(join(tmpdir(), 'livedisk-passing-'));
  readonly target = new MemoryTarget(MiB);
  readonly said: string[] = [];

  constructor(t: TestContext) {
    this.#t = t;
    t.after(() => rmSync(this.#folder, { recursive: true, force: true }));
  }

  path(name: string): string {
    return join(this.#folder, name);
  }

  async server(name: string): Promise<VhostServer> {
    const changes = new LostChanges<object>();
    const { target } = this;
    const lost = {
      add: (change: Parameters<typeof changes.add>[1]) => changes.add(target, change),
      overlapping: (offset: number, lengthBytes: number) => changes.overlapping(target, offset, lengthBytes),
    };
    const disk = { target, writable: true, blockSizeBytes: 512, queueCount: 2, serial: 'disk', lost };
    const address = { type: 'unix', path: this.path(name) } as const;
    const options = { disk, onBroken: (text: string) => this.said.push(text) };
    const server = await VhostServer.listen(host, address, options);
    this.#t.after(() => server.close());
    return server;
  }

  async frontEnd(name: string, properties: Partial<FrontEndProperties>): Promise<VhostFrontEnd> {
    const frontEnd = await VhostFrontEnd.start({ host, path: this.path(name), queueCount: 2, ...properties });
    this.#t.after(() => frontEnd.close());
    return frontEnd;
  }
}

/** As to another process, by descriptors of its own; the first server is of no more use. */
async function pass(from: VhostServer, to: VhostServer): Promise<void> {
  for (const { frontEnd, fd } of from.passed()) {
    const socket = await host.net.connect({ type: 'fd', fd: dup(fd) }, { receiveFds: true });
    to.adopt(socket, frontEnd && { ...frontEnd, fds: frontEnd.fds.map((its) => dup(its)) });
  }
}

for (const [form, features] of [
  ['split', Feature.version1 | Feature.indirect],
  ['packed', Feature.version1 | Feature.packedRing | Feature.eventIndex],
] as const)
  for (const wantsInflight of [false, true])
    test(`a front-end with ${form} rings ${wantsInflight ? 'and inflight memory ' : ''}goes on with another server, in the middle of a message`, async (t) => {
      const bed = new Bed(t);
      const [from, to] = [await bed.server('a'), await bed.server('b')];
      const guest = await bed.frontEnd('a', { features, wantsInflight });
      const late = VhostFrontEnd.connect({ host, path: bed.path('a') });
      for (let i = 0; i < 70; i++) assert.equal(await guest.write(i, Buffer.alloc(512, i + 1)), 0);
      guest.send(Request.setConfig, Buffer.from([32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]));
      const inTwo = encodeMessage(Request.setOwner, 0, new Uint8Array(0));
      guest.socket.write(inTwo.subarray(0, 5));
      await host.clock.sleep(20);
      from.freeze();
      while (!from.isQuiet) await host.clock.macrotask();
      const data = guest.allocate(512);
      guest.bytes(data).fill(200);
      const [one, other] = [guest.begin(1, 0, { out: [data] }), guest.begin(4, 0, { queue: 1 })];
      await host.clock.sleep(20);
      assert.equal(guest.bytes(one.status)[0], 0xff, 'nothing is taken');
      await pass(from, to);
      assert.equal((await guest.end(one)).status, 0);
      assert.equal((await guest.end(other)).status, 0);
      assert.deepEqual([bed.target.content[0], bed.target.content[512]], [200, 2]);
      assert.equal(bed.target.writethrough, true);
      guest.socket.write(inTwo.subarray(5));
      assert.equal(await guest.askNumber(Request.getQueueNum), 2n);
      assert.equal(await guest.write(3, Buffer.alloc(512, 7)), 0);
      guest.hangUp();
      const next = await late;
      t.after(() => next.close());
      await next.agree({});
      assert.equal(await next.askNumber(Request.getQueueNum), 2n);
      assert.deepEqual(bed.said, []);
    });

test('a front-end whose server goes on is served, with what was asked meanwhile', async (t) => {
  const bed = new Bed(t);
  const server = await bed.server('a');
  const guest = await bed.frontEnd('a', {});
  bed.target.hold();
  const slow = guest.begin(4, 0);
  while (bed.target.began.length === 0) await host.clock.macrotask();
  server.freeze();
  assert.equal(server.isQuiet, false, 'a request is under way');
  const begun = guest.begin(4, 0, { queue: 1 });
  guest.send(Request.setVringCall, encodeUint64(0x100n));
  bed.target.release();
  assert.equal((await guest.end(slow)).status, 0);
  assert.ok(server.isQuiet);
  assert.equal(guest.bytes(begun.status)[0], 0xff);
  defined(server.passed()[0]?.frontEnd, 'it could go');
  server.thaw();
  assert.equal((await guest.end(begun)).status, 0);
  assert.equal(await guest.askNumber(Request.getQueueNum), 2n);
});
