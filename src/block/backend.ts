import { Notifier } from '../base/async.js';
import { assert } from '../base/assert.js';
import type { CancelSignal } from '../base/cancel-signal.js';
import { BlockError, errnoError } from '../base/error.js';
import type { Trace } from '../base/trace.js';
import type { Host, HostClock } from '../host/host.js';
import type { BackendProperties, BackendUser } from './backend-user.js';
import type { ChainStatus } from './chain-status.js';
import type { Edge } from './edge.js';
import type { Node } from './node.js';
import type { ThrottleGroup } from './objects/throttle-group.js';
import type { ThrottleMember } from './objects/throttling.js';
import { OPERATION_OF, Statistics } from './operation-statistics.js';
import { hasPermission, Permission } from './permissions.js';
import {
  Flag,
  hasFlag,
  type IoRequest,
  type RequestKind,
  RequestPool,
  type RequestSource,
} from './request.js';
import { traceDone, traceFailed, traceRequest } from './request-trace.js';
import { checkBuffer, isBytes, noBytes, outOfRange } from './request-checks.js';

/**
 * The root of all I/O: a guest device, an export or a job reaches its node through one. It checks ranges and
 * permissions, counts, and is where drained sections hold requests back.
 */
export class BlockBackend {
  /** A drive's id, by which commands know it; '' for all others. */
  name: string;
  /** Counts the backends of a graph. */
  readonly number: number;
  /** A drive's changes when a device of the guest takes it. */
  description: string;
  isGuest: boolean;
  readonly user: BackendUser;
  readonly isUser: boolean;
  readonly owner: object | undefined;
  /** What it asks of its node; the graph keeps them. */
  perm: number;
  shared: number;
  /** The one edge, role 'root'; undefined while no node is attached. Only the graph sets it. */
  root: Edge | undefined;
  readonly statistics = new Statistics();
  /** Every write is durable when it completes. */
  writethrough = false;
  /** How its last medium was, for the next one. */
  mediumWasReadOnly = false;
  /** Woken when a request ends; the graph's drained sections wait on it. */
  /** The thread that what it uses is bound to (see home-thread); undefined: it follows others. */
  thread: string | undefined;
  readonly idle: Notifier;
  readonly clock: HostClock;
  /** For those who ask it, one request after the other or many at a time; see IoRequest. */
  readonly requests: RequestPool;
  /**
   * Of a job's copy: once it is cancelled, what its owner waits for here is given up with ECANCELED, whatever becomes of it.
   * What is in flight stays counted, and the backend where it is, until it has ended.
   */
  signal: CancelSignal | undefined;
  /** Told of the bytes of each write, zeroing and discard before it begins. */
  changes: ((offset: number, lengthBytes: number) => void) | undefined;
  /** The group whose limits hold for it, and its place in it. */
  #throttle: { group: ThrottleGroup; member: ThrottleMember; unuse: () => void } | undefined;
  readonly #trace: Trace;
  readonly #queues: boolean;
  #inFlight = 0;
  #begun = 0;
  #waitingToOpen = 0;
  /** Requests that wait for the end of a drained section. */
  #heldBack = 0;
  #quiesced = 0;
  readonly #resumed = new Notifier();
  readonly #whenQuiesced = new Set<() => void>();

  constructor(properties: BackendProperties, host: Host, idle: Notifier, number = 0) {
    this.name = properties.name ?? '';
    this.description = properties.description;
    this.number = number;
    this.perm = properties.perm;
    this.shared = properties.shared;
    this.user = properties.user ?? {};
    this.isUser = properties.isUser ?? true;
    this.owner = properties.owner;
    this.isGuest = properties.isGuest ?? false;
    this.#queues = properties.queuesWhenDrained ?? true;
    this.clock = host.clock;
    this.#trace = host.trace;
    this.requests = new RequestPool(host.requestWatch);
    this.idle = idle;
  }

  get node(): Node {
    return this.#root().node;
  }

  /** Errors: not-found for a drive without a medium; closed when taken from its node, as all are when their engine closes. */
  #root(): Edge {
    if (this.root) return this.root;
    if (this.name !== '') throw errnoError('ENOMEDIUM');
    throw new BlockError('closed', `${this.description} is closed`);
  }

  get lengthBytes(): number {
    return this.#root().node.lengthBytes;
  }

  get isWritable(): boolean {
    return hasPermission(this.perm, Permission.write);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** How many drained sections it is in; only they change it. */
  get quiesceCount(): number {
    return this.#quiesced;
  }

  get isQuiesced(): boolean {
    return this.#quiesced > 0;
  }

  /** Requests must wait for the end of a drained section. */
  #isHeld(): boolean {
    return this.#quiesced > 0 && this.#queues;
  }

  /** What it shows are the bytes of one file, each at one place for ever. */
  get isPlainFile(): boolean {
    const instance = this.root?.node.instance;
    if (instance?.map?.isFixed !== true) return false;
    return this.root?.node.children.get('file')?.node.instance.io?.file !== undefined;
  }

  describe(): string {
    return this.description;
  }

  childResized(): void {
    this.user.resized?.();
  }

  /** The limits of its reads and writes; undefined: none. */
  get throttleGroup(): ThrottleGroup | undefined {
    return this.#throttle?.group;
  }

  set throttleGroup(group: ThrottleGroup | undefined) {
    const old = this.#throttle;
    if (old?.group === group) return;
    this.#throttle = group && { group, member: group.join(), unuse: group.use() };
    // In a drained section nothing waits for its pace.
    if (this.isQuiesced) this.#throttle?.member.release();
    old?.member.leave();
    old?.unuse();
  }

  /** `tell` is called when a drained section begins, which waits for what is in flight; not after the answer was called. */
  whenQuiesced(tell: () => void): () => void {
    this.#whenQuiesced.add(tell);
    return () => void this.#whenQuiesced.delete(tell);
  }

  quiesce(): void {
    this.#quiesced++;
    for (const tell of [...this.#whenQuiesced]) tell();
    if (this.#quiesced === 1) this.#throttle?.member.release();
    this.user.drainBegin?.();
  }

  unquiesce(): void {
    assert(this.#quiesced > 0, () => `unbalanced drain of ${this.description}`);
    this.#quiesced--;
    this.user.drainEnd?.();
    if (this.#quiesced > 0) return;
    this.#throttle?.member.resume();
    this.#resumed.notify();
  }

  get isBusy(): boolean {
    return this.hasRequests || (this.user.isBusy?.() ?? false);
  }

  /**
   * Does a read or write now, if no wait is needed. False: nothing that matters was done, and run() is to be used. The
   * request stays its owner's. Errors: as run().
   */
  tryRun(request: IoRequest): boolean {
    if (this.#isHeld() || this.#throttle?.member.isFree === false) return false;
    const { kind, offset, lengthBytes } = request;
    if (kind !== 'read' && kind !== 'write') return false;
    if (kind === 'write' && (this.writethrough || request.flags !== Flag.none)) return false;
    const root = this.#root();
    this.#check(root, offset, lengthBytes);
    const isRead = kind === 'read';
    if (!isRead) {
      this.#checkWritable(root);
      this.changes?.(offset, lengthBytes);
    }
    const startedMs = this.clock.nowMs();
    const done = isRead
      ? root.tryReadPart(request, 0, lengthBytes, offset)
      : root.tryWritePart(request, 0, lengthBytes, offset);
    if (!done) return false;
    const endedMs = this.clock.nowMs();
    this.statistics.done(kind, lengthBytes, startedMs, endedMs);
    const { blockRequest, blockRequestDone } = this.#trace;
    if (blockRequest.isOn) traceRequest(blockRequest, this, request);
    if (blockRequestDone.isOn) traceDone(blockRequestDone, this, request, endedMs - startedMs);
    return true;
  }

  /**
   * Does what is asked, after the drained section that holds the backend. The request stays its owner's, who waits for
   * the answer before using it again. Errors: BlockError; ECANCELED when its signal is cancelled before it begins.
   */
  run(request: IoRequest): Promise<void> {
    return this.#perform(request, false);
  }

  /** Work on its node that is no request: it counts as one, and is given up as one. */
  async during<T>(work: () => Promise<T> | T): Promise<T> {
    this.signal?.check();
    this.#inFlight++;
    const done = (async () => work())().finally(() => this.leave());
    return this.signal ? this.signal.during(done) : done;
  }

  /** `isOwn`: one of ours, which goes back into the pool with the answer. */
  #perform(request: IoRequest, isOwn: boolean): Promise<void> {
    const { signal } = this;
    if (!signal) return this.#see(request, isOwn);
    request.signal = signal;
    return signal.during(this.#see(request, isOwn));
  }

  /** Sees a request through. */
  async #see(request: IoRequest, isOwn: boolean): Promise<void> {
    const { generation, kind, lengthBytes, source } = request;
    const operation = OPERATION_OF[kind];
    const startedMs = this.clock.nowMs();
    const { blockRequest, blockRequestDone, blockRequestFailed } = this.#trace;
    if (blockRequest.isOn) traceRequest(blockRequest, this, request);
    if (this.#isHeld()) await this.enter(request.signal);
    else this.#inFlight++;
    try {
      request.signal?.check();
      request.assertIs(generation);
      const wait = this.#throttle && this.#pace(this.#throttle.member, request);
      // One that nobody wants any more keeps its place in the line, and is counted.
      if (wait) await (request.signal?.during(wait) ?? wait);
      request.assertIs(generation);
      await this.#forward(request);
      request.assertIs(generation);
      const endedMs = this.clock.nowMs();
      this.statistics.done(operation, lengthBytes, startedMs, endedMs);
      if (blockRequestDone.isOn) traceDone(blockRequestDone, this, request, endedMs - startedMs);
    } catch (error) {
      this.statistics.failed(operation, startedMs, this.clock.nowMs());
      if (blockRequestFailed.isOn) traceFailed(blockRequestFailed, this, request, error);
      throw error;
    } finally {
      source?.end?.();
      if (isOwn) this.requests.give(request);
      this.leave();
    }
  }

  /** Its turn, where it has to wait for one. Discards and flushes have not. */
  #pace(member: ThrottleMember, { kind, lengthBytes }: IoRequest): Promise<void> | undefined {
    if (kind === 'flush' || kind === 'discard') return undefined;
    return member.enter(kind === 'read' ? 'read' : 'write', lengthBytes);
  }

  #forward(request: IoRequest): Promise<void> | undefined {
    const root = this.#root();
    const { kind, offset, lengthBytes } = request;
    if (kind === 'flush') return root.flush();
    this.#check(root, offset, lengthBytes);
    if (kind === 'read') {
      if (root.tryReadPart(request, 0, lengthBytes, offset)) return undefined;
      return root.readPart(request, 0, lengthBytes, offset);
    }
    this.#checkWritable(root);
    this.changes?.(offset, lengthBytes);
    const flags =
      this.writethrough && !hasFlag(request.flags, Flag.fua) ? request.flags | Flag.fua : request.flags;
    if (kind === 'write') return root.writePart(request, 0, lengthBytes, offset, flags);
    if (kind === 'zeroes') return root.writeZeroes(offset, lengthBytes, flags, request.signal);
    return root.discard(offset, lengthBytes, request.signal);
  }

  /** A request of one buffer, as it is asked here. */
  #take(kind: RequestKind, offset: number, buffer: Uint8Array, flags: number): IoRequest {
    const request = this.requests.take().ask(kind, offset, buffer.length, flags);
    request.setBuffer(buffer);
    return request;
  }

  #tryOwn(kind: RequestKind, offset: number, buffer: Uint8Array, flags: number): boolean {
    checkBuffer(buffer);
    const request = this.#take(kind, offset, buffer, flags);
    try {
      return this.tryRun(request);
    } finally {
      this.requests.give(request);
    }
  }

  tryRead(offset: number, buffer: Uint8Array): boolean {
    return this.#tryOwn('read', offset, buffer, Flag.none);
  }

  read(offset: number, buffer: Uint8Array): Promise<void> {
    if (!isBytes(buffer)) return Promise.reject(noBytes());
    return this.#perform(this.#take('read', offset, buffer, Flag.none), true);
  }

  tryWrite(offset: number, buffer: Uint8Array, flags: number): boolean {
    return this.#tryOwn('write', offset, buffer, flags);
  }

  write(offset: number, buffer: Uint8Array, flags = 0): Promise<void> {
    if (!isBytes(buffer)) return Promise.reject(noBytes());
    return this.#perform(this.#take('write', offset, buffer, flags), true);
  }

  /** Writes bytes that are in no memory, but for example in a file that they can be copied from. */
  writeFrom(offset: number, lengthBytes: number, source: RequestSource): Promise<void> {
    const request = this.requests.take().ask('write', offset, lengthBytes);
    request.source = source;
    return this.#perform(request, true);
  }

  writeZeroes(offset: number, lengthBytes: number, flags = 0): Promise<void> {
    return this.#perform(this.requests.take().ask('zeroes', offset, lengthBytes, flags), true);
  }

  discard(offset: number, lengthBytes: number): Promise<void> {
    return this.#perform(this.requests.take().ask('discard', offset, lengthBytes), true);
  }

  /** Everything completed before the call is durable afterwards. */
  flush(): Promise<void> {
    return this.#perform(this.requests.take().ask('flush', 0, 0), true);
  }

  /** Status through the whole chain, as a reader sees it. */
  async status(offset: number, lengthBytes: number): Promise<ChainStatus> {
    await this.enter();
    try {
      const root = this.#root();
      this.#check(root, offset, lengthBytes);
      return await root.node.statusThroughChain(offset, lengthBytes);
    } finally {
      this.leave();
    }
  }

  async truncate(lengthBytes: number): Promise<void> {
    if (!Number.isSafeInteger(lengthBytes) || lengthBytes < 0) throw outOfRange(0, lengthBytes);
    await this.enter();
    try {
      await this.#root().truncate(lengthBytes);
    } finally {
      this.leave();
    }
  }

  /**
   * Waits until no drained section holds this backend back, then counts as in flight until leave(). Errors: ECANCELED
   * when `signal` is cancelled before that.
   */
  async enter(signal?: CancelSignal): Promise<void> {
    this.#heldBack++;
    try {
      // One section may begin in the moment in which another ends.
      while (this.#isHeld()) await this.#resumed.wait(signal);
    } finally {
      this.#heldBack--;
    }
    this.#inFlight++;
  }

  /** Waits while a drained section holds the node, also for a backend whose requests it does not hold back. */
  async untilOpen(): Promise<void> {
    if (this.#quiesced === 0) return;
    this.#waitingToOpen++;
    this.idle.notify();
    while (this.#quiesced > 0) await this.#resumed.wait();
    this.#waitingToOpen--;
  }

  get isWaitingToOpen(): boolean {
    return this.#waitingToOpen > 0;
  }

  /** In flight, as requests or as work of several. */
  get hasRequests(): boolean {
    return this.#inFlight > 0 || this.#begun > 0;
  }

  /** Work that consists of several requests: drained sections wait for its end. */
  begin(): void {
    this.#begun++;
  }

  end(): void {
    this.#begun--;
    if (!this.hasRequests) this.idle.notify();
  }

  /** Resolves when no request is in flight or held back; the owner makes no new ones. */
  async untilUnused(): Promise<void> {
    await this.idle.until(() => this.#inFlight === 0 && this.#heldBack === 0);
  }

  leave(): void {
    this.#inFlight--;
    if (this.#inFlight === 0) this.idle.notify();
  }

  #check(root: Edge, offset: number, lengthBytes: number): void {
    const isWhole = Number.isSafeInteger(offset) && Number.isSafeInteger(lengthBytes);
    if (!isWhole || offset < 0 || lengthBytes < 0) throw outOfRange(offset, lengthBytes);
    if (offset + lengthBytes <= root.node.lengthBytes) return;
    throw errnoError('EIO', undefined, { node: root.node.name, offset });
  }

  #checkWritable(root: Edge): void {
    if (root.isWritable) return;
    throw new BlockError('permission', 'Operation not permitted', { errno: 'EPERM', node: root.node.name });
  }
}
