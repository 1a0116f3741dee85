import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { CancelSignal } from '../../base/cancel-signal.js';
import { Notifier } from '../../base/async.js';
import type { IoRequest, RequestPool } from '../../base/io-request.js';
import { MAX_CLIENT_IN_FLIGHT_BYTES, MiB } from '../../base/limits.js';
import { BusyPolling } from '../../host/busy-polling.js';
import type { HostClock } from '../../host/host.js';
import type { HostEvent, HostWatch } from '../../host/sharing.js';
import { BlockRequest, checkShape, HEADER_BYTES } from './block-request.js';
import { broken } from './codec.js';
import { BlockStatus, ID_BYTES } from './constants.js';
import type { DirtyLog } from './dirty-log.js';
import type { GuestMemory } from './guest-memory.js';
import type { BlockExportProperties } from './target.js';
import { Chain } from './chain.js';
import { PackedQueue } from './packed-queue.js';
import { SplitQueue } from './split-queue.js';
import type { Virtqueue } from './virtqueue.js';

/** Bytes served of one queue before others get their turn, and what a request counts for at least. */
const TURN_BYTES = 8 * MiB;
const REQUEST_COST_BYTES = 32 * 1024;
/** Requests of one peer under way. */
const MAX_IN_FLIGHT_REQUESTS = 1024;

/** What the queues of one peer share. */
export interface QueueOwner {
  readonly disk: BlockExportProperties;
  readonly clock: HostClock;
  readonly pool: RequestPool;
  readonly load: Load;
  readonly memory: GuestMemory | undefined;
  /** What we write of the guest's memory is marked in it. */
  readonly log: DirtyLog | undefined;
  /** It is agreed that all is logged, and there is nothing yet to log it in. */
  readonly lacksLog: boolean;
  readonly hasEventIndex: boolean;
  readonly tellsWhenEmpty: boolean;
  readonly isGone: boolean;
  /** Nothing is taken for a while. */
  readonly isFrozen: boolean;
  /** What the peer's memory says is wrong: its connection ends. */
  fail(error: BlockError): void;
}

/** Requests that wait for the disk, of all queues. */
export class Load {
  requests = 0;
  bytes = 0;
  readonly less = new Notifier();

  get isFull(): boolean {
    return this.requests >= MAX_IN_FLIGHT_REQUESTS || this.bytes >= MAX_CLIENT_IN_FLIGHT_BYTES;
  }
}

/** Where a request that waits for the disk is to be answered. */
interface Answer {
  readonly head: number;
  readonly memory: GuestMemory;
  readonly buffer: Buffer;
  readonly at: number;
  readonly address: number;
  readonly filledBytes: number;
  /** What we write of the guest's memory: address and length in turns. */
  readonly filled: readonly number[];
}

/** Serves one queue: takes requests as they come, does what the disk can do at once, and answers the others when they are done. */
export class QueueServer {
  #queue: Virtqueue;
  readonly #owner: QueueOwner;
  readonly #chain = new Chain();
  readonly #request = new BlockRequest();
  readonly #polling: BusyPolling;
  readonly #idle = new Notifier();
  readonly #changes = new Set<{ offset: number; lengthBytes: number; over: Promise<void> }>();
  #kick: HostWatch | undefined;
  #call: HostEvent | undefined;
  #error: HostEvent | undefined;
  /** Cancelled when the peer is gone, or requests are given up: what has not begun does not begin. */
  #signal = new CancelSignal();
  #isStarted = false;
  isEnabled = false;
  #inFlight = 0;
  /** Heads that a device before us had begun. */
  #toRepeat: number[] = [];
  #isTurnArmed = false;
  #isTellArmed = false;

  constructor(index: number, owner: QueueOwner) {
    this.#queue = new SplitQueue(index);
    this.#owner = owner;
    const loop = {
      nowMs: () => owner.clock.nowMs(),
      nextRound: (round: () => void) => owner.clock.defer(round),
    };
    this.#polling = new BusyPolling(loop, {
      look: () => {
        if (this.#runs() && this.queue.hasMore()) this.#serve();
      },
      sleep: () => this.#guarded(() => this.#listen()),
    });
  }

  get queue(): Virtqueue {
    return this.#queue;
  }

  /** The form of its ring. Errors: those of broken(), when it is in use in another one. */
  setPacked(isPacked: boolean): void {
    if (this.#queue instanceof PackedQueue === isPacked) return;
    const { index } = this.#queue;
    if (this.#isStarted || this.#inFlight > 0) throw broken(`queue ${index} is running`);
    const queue = isPacked ? new PackedQueue(index) : new SplitQueue(index);
    queue.takeOver(this.#queue);
    this.#queue = queue;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  setKick(kick: HostWatch): void {
    this.#kick?.close();
    this.#kick = kick;
    this.#start();
  }

  setCall(call: HostEvent | undefined): void {
    this.#call?.close();
    this.#call = call;
    // Of what was answered before it came nobody may have told.
    call?.signal();
  }

  setError(error: HostEvent | undefined): void {
    this.#error?.close();
    this.#error = error;
  }

  get isStarted(): boolean {
    return this.#isStarted;
  }

  /** What it hears by and tells by. */
  get events(): { kick: HostWatch | undefined; call: HostEvent | undefined; error: HostEvent | undefined } {
    return { kick: this.#kick, call: this.#call, error: this.#error };
  }

  /** From where in the memory it is used. */
  #start(): void {
    if (this.#isStarted) return;
    this.#map();
    this.#toRepeat = this.queue.start();
    this.#isStarted = true;
    this.look();
  }

  #map(): void {
    const { memory, hasEventIndex } = this.#owner;
    if (!memory) throw broken(`queue ${this.queue.index} starts without memory`);
    this.queue.map(memory, hasEventIndex);
  }

  /** Memory, or what was agreed, has changed. */
  changed(): void {
    if (this.#isStarted && this.#owner.memory) this.#map();
    else this.queue.unmap();
    this.look();
  }

  /**
   * Takes nothing more; resolves when all that was taken is answered. What waits for a guest that a failure has stopped, or
   * fails meanwhile, is given up, where it is kept in mind, and is taken again when the queue starts: the guest's
   * processors stop only then.
   */
  async stop(): Promise<void> {
    this.#isStarted = false;
    this.#kick?.close();
    this.#kick = undefined;
    if (this.#inFlight > 0 && this.queue.keepsInflight) await this.#idleOrHeld();
    await this.idle();
    this.#tell();
    this.queue.unmap();
  }

  async #idleOrHeld(): Promise<void> {
    const over = new CancelSignal();
    const held = this.#owner.disk.target.whenHeld?.(over).then(
      () => this.#signal.cancel(),
      () => undefined,
    );
    await this.idle();
    over.cancel();
    await held;
    if (this.#signal.isCancelled && !this.#owner.isGone) this.#signal = new CancelSignal();
  }

  idle(): Promise<void> {
    return this.#idle.until(() => this.#inFlight === 0);
  }

  /** The peer is gone; what is under way may be over late. */
  close(): void {
    this.#isStarted = false;
    for (const change of this.#changes) this.#owner.disk.lost.add(change);
    this.#kick?.close();
    this.#call?.close();
    this.#error?.close();
    this.#kick = this.#call = this.#error = undefined;
    this.#signal.cancel();
    this.queue.unmap();
    this.#chain.in.forget();
    this.#chain.out.forget();
  }

  tellError(): void {
    this.#error?.signal();
  }

  /** Takes what there is. */
  look(): void {
    if (this.#runs()) this.#serve();
  }

  #runs(): boolean {
    const { isGone, isFrozen, lacksLog } = this.#owner;
    const isServed = !isGone && !isFrozen && !lacksLog;
    return this.#isStarted && this.isEnabled && isServed && this.queue.isMapped;
  }

  #serve(): void {
    this.#guarded(() => {
      this.queue.suppress();
      const isDone = this.#takeAll();
      // While it looks for more, or has yet to go on, it need not be told.
      if (isDone && !this.#polling.came()) this.#listen();
      else this.#tell();
    });
  }

  #listen(): void {
    if (!this.#runs()) return;
    // What waits for room is taken when there is some.
    while (this.queue.listen()) if (!this.#takeAll()) break;
    this.#tell();
  }

  /** False: there is more, which is taken in another turn. */
  #takeAll(): boolean {
    let turnBytes = 0;
    for (;;) {
      if (this.#owner.load.isFull) return this.#later(this.#owner.load.less.wait());
      if (turnBytes >= TURN_BYTES) return this.#later(this.#owner.clock.macrotask());
      const { memory } = this.#owner;
      if (!memory || !this.#runs()) return true;
      const head = this.#next(memory);
      if (head < 0) return true;
      turnBytes += REQUEST_COST_BYTES + this.#chain.in.totalBytes + this.#chain.out.totalBytes;
      this.#begin(head, memory);
    }
  }

  #later(when: Promise<void>): boolean {
    if (this.#isTurnArmed) return false;
    this.#isTurnArmed = true;
    void when.then(() => {
      this.#isTurnArmed = false;
      this.look();
    });
    return false;
  }

  #next(memory: GuestMemory): number {
    const again = this.#toRepeat.shift();
    if (again === undefined) return this.queue.take(memory, this.#chain);
    this.queue.readAgain(again, memory, this.#chain);
    return again;
  }

  #begin(head: number, memory: GuestMemory): void {
    const chain = this.#chain;
    checkShape(chain);
    const last = chain.in.count - 1;
    const buffer = chain.in.buffer(last);
    const at = chain.in.cutLastByte();
    const address = (chain.in.addresses[last] ?? 0) + (chain.in.lengths[last] ?? 0);
    const request = this.#request;
    const { disk } = this.#owner;
    request.parse(chain, disk);
    if (request.kind === undefined || this.#tryNow(request)) {
      const filledBytes = request.wantsId
        ? this.#giveId()
        : request.kind === 'read'
          ? chain.in.totalBytes
          : 0;
      buffer[at] = request.status;
      this.#markChain(filledBytes, address);
      return this.queue.give(head, filledBytes + 1);
    }
    const isRead = request.kind === 'read';
    void this.#finish(request, {
      ...{ head, memory, buffer, at, address },
      filledBytes: isRead ? chain.in.totalBytes : 0,
      filled: isRead ? filledOf(chain) : [],
    });
  }

  /** A request of the pool that uses the chain's memory. */
  #take({ kind, offset, lengthBytes, flags }: BlockRequest): IoRequest {
    assert(kind, 'a request of the disk');
    const io = this.#owner.pool.take().ask(kind, offset, lengthBytes, flags);
    if (kind === 'read') this.#chain.in.lendTo(io, 0);
    else if (kind === 'write') this.#chain.out.lendTo(io, HEADER_BYTES);
    io.isStable = false;
    return io;
  }

  /** False: it must wait for the disk. */
  #tryNow(request: BlockRequest): boolean {
    const { kind, offset, lengthBytes } = request;
    if (kind !== 'read' && kind !== 'write') return false;
    const { disk, pool } = this.#owner;
    if (kind === 'write' && disk.lost.overlapping(offset, lengthBytes)) return false;
    const io = this.#take(request);
    try {
      return disk.target.tryRun(io);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      request.status = BlockStatus.ioError;
      return true;
    } finally {
      pool.give(io);
    }
  }

  /** Sees one through that waits for the disk. */
  async #finish(request: BlockRequest, answer: Answer): Promise<void> {
    const { load } = this.#owner;
    const { offset, lengthBytes } = request;
    const isChange = request.kind !== 'read' && request.kind !== 'flush';
    const io = this.#take(request);
    answer.memory.use();
    this.#inFlight++;
    load.requests++;
    load.bytes += lengthBytes;
    const asked = this.#ask(io, isChange);
    const change = { offset, lengthBytes, over: asked.then(() => undefined) };
    if (isChange) this.#changes.add(change);
    const status = await asked;
    this.#changes.delete(change);
    load.requests--;
    load.bytes -= lengthBytes;
    if (status !== undefined) this.#guarded(() => this.#answer(answer, status));
    answer.memory.unuse();
    this.#inFlight--;
    if (this.#inFlight === 0) this.#idle.notify();
    load.less.notify();
  }

  /** Answers the status; undefined: it was given up, or its peer is gone. */
  async #ask(io: IoRequest, isChange: boolean): Promise<number | undefined> {
    const { disk, pool } = this.#owner;
    const signal = this.#signal;
    const { offset, lengthBytes } = io;
    io.signal = signal;
    try {
      if (isChange) await this.#afterLost(offset, lengthBytes);
      await disk.target.run(io);
      return BlockStatus.ok;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      // Whatever it failed with: it has not gone by the policy for errors, and does when it is asked for again.
      return signal.isCancelled ? undefined : BlockStatus.ioError;
    } finally {
      pool.give(io);
    }
  }

  /** Waits for changes of peers that are gone. Errors: ECANCELED, when this one is gone itself by then. */
  async #afterLost(offset: number, lengthBytes: number): Promise<void> {
    const { disk } = this.#owner;
    const signal = this.#signal;
    const before = (): Promise<unknown> | undefined => disk.lost.overlapping(offset, lengthBytes);
    for (let lost = before(); lost; lost = before()) await signal.during(lost);
  }

  #answer({ head, buffer, at, address, filledBytes, filled }: Answer, status: number): void {
    // Of one that is gone the ring belongs to who comes after us.
    if (this.#owner.isGone || !this.queue.isMapped) return;
    const { log } = this.#owner;
    buffer[at] = status;
    log?.mark(address, 1);
    if (log) for (let i = 0; i < filled.length; i += 2) log.mark(filled[i] ?? 0, filled[i + 1] ?? 0);
    this.queue.give(head, filledBytes + 1);
    if (this.#isTellArmed) return;
    this.#isTellArmed = true;
    // Once for all that end in this turn.
    this.#owner.clock.defer(() => {
      this.#isTellArmed = false;
      this.#guarded(() => this.#tell());
    });
  }

  #tell(): void {
    const { isGone, tellsWhenEmpty } = this.#owner;
    if (isGone || !this.queue.isMapped) return;
    if (this.queue.mustTell(tellsWhenEmpty && this.#inFlight === 0)) this.#call?.signal();
  }

  /** The name of the disk; answers how much was filled. */
  #giveId(): number {
    const place = this.#chain.in;
    const id = Buffer.alloc(ID_BYTES);
    id.write(this.#owner.disk.serial, 'latin1');
    const lengthBytes = Math.min(ID_BYTES, place.totalBytes);
    place.write(0, id.subarray(0, lengthBytes));
    return lengthBytes;
  }

  /** What was filled of the chain's memory, and the status. */
  #markChain(filledBytes: number, statusAddress: number): void {
    const { log } = this.#owner;
    if (!log) return;
    const { addresses, lengths, count } = this.#chain.in;
    if (filledBytes > 0) for (let i = 0; i < count; i++) log.mark(addresses[i] ?? 0, lengths[i] ?? 0);
    log.mark(statusAddress, 1);
  }

  #guarded(body: () => void): void {
    try {
      body();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.#owner.fail(error);
    }
  }
}

function filledOf({ in: { addresses, lengths, count } }: Chain): number[] {
  const filled: number[] = [];
  for (let i = 0; i < count; i++) filled.push(addresses[i] ?? 0, lengths[i] ?? 0);
  return filled;
}
