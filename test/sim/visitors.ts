import { BlockError } from '../../src/base/error.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { Flag, hasFlag } from '../../src/block/request.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { NbdSession } from '../../src/wire/nbd/session.js';
import { CommandFlag } from '../../src/wire/nbd/constants.js';
import type { SocketAddress } from '../../src/host/host.js';
import type { Engine } from './world.js';

/** Who reads and writes the guest's disk: the guest itself, or another user of the same disk. */
export type DiskUser = Pick<
  BlockBackend,
  'tryRead' | 'read' | 'tryWrite' | 'write' | 'writeZeroes' | 'discard' | 'flush'
>;

interface Visitor {
  name: string;
  user: DiskUser;
  canWrite: boolean;
  /** Ends its use, once no request is under way. */
  leave(): Promise<void>;
}

/** Most at a time. */
const MOST = 3;
const SERVER = '/tmp/visitors';

/** Users of the guest's disk who come and go at any moment, in the middle of jobs and of drained sections. */
export class Visitors {
  readonly #engine: Engine;
  readonly #random: SeededRandom;
  /** What a visitor does as soon as it has come. */
  onArrival: (user: DiskUser, canWrite: boolean) => Promise<void> = async () => undefined;
  readonly #here: Visitor[] = [];
  readonly #pauseMs: number;
  #stopped = false;
  #running: Promise<void> | undefined;
  #count = 0;
  #isServing = false;

  constructor(engine: Engine, random: SeededRandom) {
    this.#engine = engine;
    this.#random = random;
    this.#pauseMs = 5 + random.below(120);
  }

  start(): void {
    this.#running = this.#comeAndGo();
  }

  /** All have left. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
    while (this.#here.length > 0 && this.#engine.isAlive) await this.#goOne();
    if (this.#isServing && this.#engine.isAlive)
      await this.#engine.attempt('stop serving visitors', () => this.#engine.monitor.exports.stopServer());
  }

  /** One of those who use the disk now, the guest among them. */
  pick(random: SeededRandom, toWrite: boolean): DiskUser {
    const { guest } = this.#engine;
    if (!guest) throw new Error('no guest');
    const users = this.#here.filter(({ canWrite }) => canWrite || !toWrite).map(({ user }) => user);
    return users[random.below(users.length * 2 + 1)] ?? guest;
  }

  async #comeAndGo(): Promise<void> {
    const random = this.#random;
    const { clock } = this.#engine.host;
    while (!this.#stopped && this.#engine.isAlive) {
      await clock.sleep(random.below(this.#pauseMs));
      if (random.chance(0.5)) await this.#untilDrained();
      if (this.#stopped || !this.#engine.isAlive) return;
      if (this.#here.length >= MOST || (this.#here.length > 0 && random.chance(0.5))) await this.#goOne();
      else await this.#come();
    }
  }

  /** Such a moment is short; one may not come for a while. */
  async #untilDrained(): Promise<void> {
    const engine = this.#engine;
    for (let i = 0; i < 400 && engine.isAlive && !this.#stopped; i++) {
      if (engine.guest?.isQuiesced) return;
      await engine.host.clock.sleep(0.25);
    }
  }

  async #goOne(): Promise<void> {
    const [visitor] = this.#here.splice(this.#random.below(this.#here.length), 1);
    if (visitor) await this.#engine.attempt(`${visitor.name} goes`, () => visitor.leave());
  }

  async #come(): Promise<void> {
    const random = this.#random;
    const engine = this.#engine;
    const canWrite = random.chance(0.6);
    const kind = random.below(engine.world.faulty ? 3 : 4);
    const name = `visitor${this.#count++}`;
    await engine.attempt(`${name} comes (${kind}${canWrite ? ', writes' : ''})`, async () => {
      const visitor = await this.#make(name, kind, canWrite).catch(refusedAsReadOnly);
      if (!visitor) return;
      // What a newcomer asks at once meets the section that is open, if one is.
      await this.onArrival(visitor.user, canWrite);
      this.#here.push(visitor);
    });
  }

  async #make(name: string, kind: number, canWrite: boolean): Promise<Visitor | undefined> {
    if (kind === 0 && canWrite) return this.#device(name);
    if (kind === 1) return this.#above(name, canWrite);
    if (kind === 2) return this.#direct(name, canWrite);
    return this.#overNbd(name, canWrite);
  }

  /** The disk by the name that a user knows, or, sometimes, as the guest sees it: through the filters of jobs. */
  #node(): Node {
    const { guest } = this.#engine;
    if (!guest) throw new Error('no guest');
    return this.#random.chance(0.7) ? guest.node.skipFilters() : guest.node;
  }

  /** Whether a node shows the guest's disk: a job's end may have changed that while one was on the way to it. */
  #isDisk(node: Node): boolean {
    for (const at of this.#engine.guest?.node.chain() ?? []) {
      if (at === node) return true;
      if (!at.isFilter) return false;
    }
    return false;
  }

  async #direct(name: string, canWrite: boolean): Promise<Visitor> {
    const backend = this.#backend(name, canWrite);
    await this.#engine.graph.transaction((change) => void change.attach(backend, 'root', this.#node()));
    return { name, user: backend, canWrite, leave: () => this.#detach(backend) };
  }

  #backend(name: string, canWrite: boolean): BlockBackend {
    return this.#engine.graph.createBackend({
      description: name,
      perm: Permission.consistentRead | (canWrite ? Permission.write : 0),
      shared: ALL_PERMISSIONS - Permission.resize,
    });
  }

  async #detach(backend: BlockBackend): Promise<void> {
    await backend.untilUnused();
    const { root } = backend;
    if (root && this.#engine.isAlive) await this.#engine.graph.transaction((change) => change.detach(root));
  }

  /** Another guest's, which shares the disk. */
  async #device(id: string): Promise<Visitor | undefined> {
    const { monitor } = this.#engine;
    const device = await monitor.addDevice(this.#node().name, { id, shareRw: true });
    const leave = async (): Promise<void> => {
      await device.close();
      monitor.devices.delete(id);
    };
    if (this.#isDisk(device.backend.node)) return { name: id, user: device.backend, canWrite: true, leave };
    await leave();
    return undefined;
  }

  /** On a node of its own above the disk. */
  async #above(name: string, canWrite: boolean): Promise<Visitor | undefined> {
    const { opener, graph } = this.#engine;
    const options = { driver: 'raw', file: this.#node().name };
    const raw = await opener.open(options, { readOnly: !canWrite });
    const backend = this.#backend(name, canWrite);
    try {
      await graph.transaction((change) => void change.attach(backend, 'root', raw));
    } catch (error) {
      await graph.collect([raw]);
      throw error;
    }
    const leave = async (): Promise<void> => {
      await this.#detach(backend);
      if (this.#engine.isAlive) await graph.collect([raw]);
    };
    if (this.#isDisk(raw.child('file').node)) return { name, user: backend, canWrite, leave };
    await leave();
    return undefined;
  }

  /** What a client had in flight is sent again: it sees nothing of it. */
  #cutSoon(address: SocketAddress): void {
    const { world, host } = this.#engine;
    for (let i = this.#random.below(3); i >= 0; i--)
      host.clock.setTimer(this.#random.below(300), () => world.simulation.cutConnections(address));
  }

  async #overNbd(id: string, writable: boolean): Promise<Visitor | undefined> {
    const { monitor, host } = this.#engine;
    const { exports } = monitor;
    const address = { type: 'unix' as const, path: SERVER };
    if (!this.#isServing) await exports.startServer(address);
    this.#isServing = true;
    const node = this.#node();
    await exports.add({ id, node, name: id, writable });
    const isThere = (nodeName: string | undefined): boolean =>
      nodeName !== undefined && this.#isDisk(monitor.graph.node(nodeName));
    if (!isThere(exports.list().find((entry) => entry.id === id)?.nodeName)) {
      await exports.remove(id, 'hard');
      return undefined;
    }
    const client = await NbdSession.open({
      host,
      address,
      exportName: id,
      reconnectDelayMs: 60_000,
      openTimeoutMs: 60_000,
    });
    if (this.#random.chance(0.5)) this.#cutSoon(address);
    const user = new NbdUser(client);
    const leave = async (): Promise<void> => {
      if (this.#engine.isAlive) await user.untilIdle();
      await client.close();
      if (this.#engine.isAlive) await exports.remove(id, 'hard');
    };
    return { name: id, user, canWrite: writable, leave };
  }
}

/** The node that was found has become a backing file meanwhile. */
function refusedAsReadOnly(error: unknown): undefined {
  if (!(error instanceof BlockError) || error.kind !== 'permission') throw error;
}

/** A client of an export. */
class NbdUser implements DiskUser {
  readonly #client: NbdSession;
  readonly #inFlight = new Set<Promise<void>>();

  constructor(client: NbdSession) {
    this.#client = client;
  }

  /** What was cut and waits to be sent again would fail if the client closed first. */
  async untilIdle(): Promise<void> {
    while (this.#inFlight.size > 0) await Promise.allSettled(this.#inFlight);
  }

  #counted(request: Promise<void>): Promise<void> {
    this.#inFlight.add(request);
    const done = (): void => void this.#inFlight.delete(request);
    request.then(done, done);
    return request;
  }

  tryRead(): boolean {
    return false;
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    return this.#counted(this.#client.read(offset, buffer));
  }

  tryWrite(): boolean {
    return false;
  }

  write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    return this.#counted(this.#client.write(offset, buffer, this.#fua(flags)));
  }

  writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const mayPunch = hasFlag(flags, Flag.mayUnmap) ? 0 : CommandFlag.noHole;
    return this.#counted(this.#client.writeZeroes(offset, lengthBytes, this.#fua(flags) + mayPunch));
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#counted(this.#client.trim(offset, lengthBytes));
  }

  flush(): Promise<void> {
    return this.#counted(this.#client.flush());
  }

  #fua(flags: number): number {
    return hasFlag(flags, Flag.fua) ? CommandFlag.fua : 0;
  }
}
