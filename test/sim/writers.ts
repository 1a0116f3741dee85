import { BlockBackend } from '../../src/block/backend.js';
import { Flag } from '../../src/block/request.js';
import type { SeededRandom } from '../../src/host/simulated.js';
import { type GuestDisk, problemOf, SECTOR_BYTES, type Stretch } from './guest-disk.js';
import { isNoSpace } from './filler.js';
import { PieceRequests } from './piece-requests.js';
import type { DiskUser, Visitors } from './visitors.js';
import { describe, type Engine, type World } from './world.js';

/** Sectors of the longest request. */
const LONGEST = 140;

/** How long a guest leaves a disk alone that could not flush. */
const PAUSE_AFTER_FAILURE_MS = 2;

/** Programs of the guest, and of others who use its disk, that write, read and flush until they are told to stop. */
export class Writers {
  readonly #engine: Engine;
  readonly #disk: GuestDisk;
  readonly #random: SeededRandom;
  readonly #visitors: Visitors;
  readonly #pauseMs: number;
  #stopped = false;
  readonly #running: Array<Promise<void>> = [];

  constructor(engine: Engine, disk: GuestDisk, random: SeededRandom, visitors: Visitors) {
    this.#engine = engine;
    this.#visitors = visitors;
    visitors.onArrival = async (user, canWrite) => {
      for (let i = 0; i < 2 && canWrite && engine.isAlive; i++) await this.#request(8, user);
      if (engine.isAlive) await this.#request(9, user, 'read');
    };
    this.#disk = disk;
    this.#random = random;
    this.#pauseMs = random.below(12);
  }

  start(count: number): void {
    for (let i = 0; i < count; i++) this.#running.push(this.#write(i));
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#running);
  }

  async #write(name: number): Promise<void> {
    const random = this.#random;
    const { clock } = this.#engine.host;
    while (!this.#stopped && this.#engine.isAlive) {
      await this.#request(name);
      if (!this.#engine.isAlive) return;
      // Without any pause time would stand still while all that they ask is answered at once.
      await clock.sleep(0.02 + (random.chance(0.6) ? random.below(this.#pauseMs + 1) : 0));
    }
  }

  /** A request of a random user, or of this one. */
  async #request(name: number, by?: DiskUser, what?: 'read'): Promise<void> {
    const random = this.#random;
    const disk = this.#disk;
    const kind = what === 'read' ? 3 : random.below(20);
    const user = by ?? this.#visitors.pick(random, kind < 3 || kind >= 5);
    if (kind < 3) return this.#flush(name, user);
    const stretch = disk.claim(random, random.chance(0.3) ? LONGEST : 12);
    if (!stretch) return;
    const text = `guest ${name} ${stretch.first}+${stretch.count}`;
    try {
      if (kind < 5) await this.#read(text, stretch, this.#visitors.pick(this.#random, false));
      else if (kind < 7) await this.#zero(text, stretch, user);
      else if (kind < 8) await this.#discard(text, stretch, user);
      else await this.#writeData(text, stretch, user, kind === 8);
    } finally {
      if (this.#engine.isAlive) disk.release(stretch);
    }
  }

  async #flush(name: number, user: DiskUser): Promise<void> {
    const position = this.#disk.position();
    const done = await this.#try(`guest ${name} flush`, () => user.flush(), 'flush');
    if (done) this.#disk.flushed(position);
    // One that fails takes no time; nobody asks on and on at once.
    else if (this.#engine.isAlive) await this.#engine.host.clock.sleep(PAUSE_AFTER_FAILURE_MS);
  }

  async #read(text: string, { first, count }: Stretch, user: DiskUser): Promise<void> {
    const bytes = Buffer.alloc(count * SECTOR_BYTES, 0xee);
    const allowed = this.#disk.allowedNow();
    const offset = first * SECTOR_BYTES;
    const done = await this.#try(
      `${text} read`,
      async () => {
        if (this.#isVectored(user)) await this.#pieces(user).read(offset, bytes);
        else if (!user.tryRead(offset, bytes)) await user.read(offset, bytes);
      },
      'read',
    );
    const problem = done ? problemOf(bytes, allowed, first) : undefined;
    if (done && problem === undefined) this.#disk.saw({ first, count }, bytes);
    if (problem === undefined || !this.#engine.isAlive) return;
    await this.#traceLayers(first, problem);
    this.#engine.world.fail(`${text} read: ${problem}`);
  }

  /** What each layer has in the sector that is wrong. */
  async #traceLayers(first: number, problem: string): Promise<void> {
    const sector = Number(/sector (\d+)/.exec(problem)?.[1] ?? first);
    for (const node of this.#guest().node.chain()) {
      const offset = sector * SECTOR_BYTES;
      if (node.isFilter || offset >= node.lengthBytes) continue;
      const bytes = Buffer.alloc(SECTOR_BYTES);
      await node.io.readBuffer(offset, bytes);
      const status = await node.io.status(offset, SECTOR_BYTES);
      this.#engine.world.trace(`${node.filename} has ${bytes.readUInt32LE(0)}: ${JSON.stringify(status)}`);
    }
  }

  async #writeData(text: string, stretch: Stretch, user: DiskUser, fua: boolean): Promise<void> {
    const bytes = this.#disk.beginWrite(stretch);
    const pieces = this.#isVectored(user) ? this.#pieces(user) : undefined;
    // What the guest puts into the same memory while it is being written.
    const later = pieces && this.#random.chance(0.4) ? this.#disk.beginWrite(stretch) : undefined;
    const offset = stretch.first * SECTOR_BYTES;
    const flags = fua ? Flag.fua : Flag.none;
    const done = await this.#try(
      `${text} write${fua ? ' fua' : ''}${later ? ' of memory that changes' : ''}`,
      async () => {
        if (pieces) await pieces.write(offset, bytes, later, flags);
        else if (!user.tryWrite(offset, bytes, flags)) await user.write(offset, bytes, flags);
      },
    );
    if (!done) return;
    this.#disk.wrote(stretch, fua, later ? 2 : 1);
    // What came to be there is the same wherever it is, from now on.
    if (later && this.#random.chance(0.7))
      await this.#read(text, stretch, this.#visitors.pick(this.#random, false));
  }

  #isVectored(user: DiskUser): user is BlockBackend {
    return user instanceof BlockBackend && this.#random.chance(0.5);
  }

  #pieces(backend: BlockBackend): PieceRequests {
    return new PieceRequests(backend, this.#random, this.#engine.host.clock);
  }

  async #zero(text: string, stretch: Stretch, user: DiskUser): Promise<void> {
    const fua = this.#random.chance(0.2);
    const flags = (this.#random.chance(0.5) ? Flag.mayUnmap : Flag.none) + (fua ? Flag.fua : Flag.none);
    this.#disk.beginZero(stretch);
    const done = await this.#try(`${text} zero${fua ? ' fua' : ''}`, () =>
      user.writeZeroes(stretch.first * SECTOR_BYTES, stretch.count * SECTOR_BYTES, flags),
    );
    if (done) this.#disk.wrote(stretch, fua);
  }

  /** A hint: each sector reads as before or as zeroes afterwards. */
  async #discard(text: string, stretch: Stretch, user: DiskUser): Promise<void> {
    this.#disk.beginZero(stretch);
    await this.#try(`${text} discard`, () =>
      user.discard(stretch.first * SECTOR_BYTES, stretch.count * SECTOR_BYTES),
    );
  }

  #guest(): NonNullable<Engine['guest']> {
    const { guest } = this.#engine;
    if (!guest) throw new Error('no guest');
    return guest;
  }

  /** A guest's request never fails unless the disk does. */
  async #try(text: string, request: () => Promise<void>, kind: RequestKind = 'change'): Promise<boolean> {
    const engine = this.#engine;
    const { world } = engine;
    world.trace(text);
    try {
      await request();
      if (engine.isAlive) world.trace(`${text}: done`);
      world.guestRequests++;
      return engine.isAlive;
    } catch (error) {
      if (!engine.isAlive) return false;
      world.trace(`${text}: ${describe(error)}`);
      const isFull = mayBeFull(world, kind) && isNoSpace(error);
      if (!world.faulty && !isFull) world.fail(`${text}: ${describe(error)}`, error);
      return false;
    }
  }
}

type RequestKind = 'read' | 'flush' | 'change';

/** Which requests may be told that there is no space: a flush only by a disk that tells late. */
function mayBeFull({ tight }: World, kind: RequestKind): boolean {
  if (!tight || kind === 'read') return false;
  return kind === 'change' || tight.tells === 'late';
}
