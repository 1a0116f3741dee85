import { type Deferred, deferred } from '../../base/async.js';
import type { ByteRanges } from '../../base/byte-ranges.js';
import { BlockError, errnoError } from '../../base/error.js';
import type { HostTimer } from '../../host/host.js';
import { NbdClient, type NbdClientOptions } from './client.js';
import type { NbdExportInfo } from './client-handshake.js';
import type { Extent } from './codec.js';
import { CommandFlag, TransmissionFlag } from './constants.js';
import { LostChanges } from './lost-changes.js';
import { Unflushed } from './unflushed.js';

/** Between tries to connect; doubled each time. */
const FIRST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 1000;
/** How long requests wait for a try to connect where nothing says that they should wait; the try itself may go on. */
const PATIENCE_MS = 2000;
/** A request that has lost that many connections is not sent again: maybe it is what breaks them. */
const MAX_SENDS = 8;
/** To a server that lets several see one another's changes. */
const MAX_CONNECTIONS = 4;
/** Requests in flight on each connection before another one is made. */
const BUSY_REQUESTS = 16;

export interface NbdSessionOptions extends Omit<NbdClientOptions, 'onLost'> {
  /** After a connection was lost, requests wait as long for another, and are sent again (0: they fail). */
  reconnectDelayMs?: number;
  /** At the start it is tried to connect for as long (0: once). */
  openTimeoutMs?: number;
}

/** Bytes that a request changes. */
interface Stretch {
  readonly offset: number;
  readonly lengthBytes: number;
}

interface Waiter {
  /** Of the request, in the order in which they were made. */
  readonly turn: number;
  readonly result: Deferred<NbdClient>;
}

/**
 * An export, over connections that may be lost and made again. A lost one is shut down, and no other one is made before
 * the server was seen to close it: so nothing that was sent on it is read any more. Requests that are sent again come
 * before newer ones that change the same bytes. Without a delay what is in flight fails, and the next request connects
 * again; what was answered and not flushed may be gone then (unflushed.ts). Errors: those of NbdClient; EIO where no
 * connection could be made, or something is gone.
 */
export class NbdSession {
  /** Of the first connection; later ones must tell as much: see isSameExport. */
  readonly info: NbdExportInfo;
  readonly #options: NbdSessionOptions;
  readonly #clients: NbdClient[] = [];
  /** Lost connections that the server has not closed yet. */
  readonly #leaving = new Set<Promise<void>>();
  /** Changes that were sent on a lost connection and are to be sent again. */
  readonly #unsure = new LostChanges<NbdSession>();
  readonly #unflushed = new Unflushed();
  readonly #waiters: Waiter[] = [];
  #losses = 0;
  #turns = 0;
  /** A try to connect is under way since then. */
  #tryingSinceMs: number | undefined;
  /** Until then requests wait, and it is tried again and again. */
  #deadlineMs = 0;
  #deadlineTimer: HostTimer | undefined;
  #patienceTimer: HostTimer | undefined;
  /** Each abandon() begins another: requests of an older one are not sent again. */
  #era = 0;
  /** Nobody wanted to wait for the server any more, nor does anybody for its hanging up. */
  #isAbandoned = false;
  #isClosing = false;
  #isWidening = false;

  private constructor(options: NbdSessionOptions, first: NbdClient) {
    this.#options = options;
    this.info = first.info;
  }

  /** Errors: those of NbdClient.connect; of the last try, when the time is over. */
  static async open(options: NbdSessionOptions): Promise<NbdSession> {
    const { clock } = options.host;
    const endMs = clock.nowMs() + (options.openTimeoutMs ?? 0);
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      try {
        return await NbdSession.#first(options);
      } catch (error) {
        if (clock.nowMs() + pauseMs > endMs) throw error;
        await clock.sleep(pauseMs);
      }
    }
  }

  static async #first(options: NbdSessionOptions): Promise<NbdSession> {
    let lost = (): void => undefined;
    const client = await NbdClient.connect({ ...options, onLost: () => lost() });
    const session = new NbdSession(options, client);
    lost = () => session.#lost(client);
    session.#clients.push(client);
    return session;
  }

  /** Another number after each loss of a connection. */
  get connection(): number {
    return this.#losses;
  }

  has(transmissionFlag: number): boolean {
    return (this.info.flags & transmissionFlag) !== 0;
  }

  async read(offset: number, buffer: Uint8Array): Promise<void> {
    await this.#run(undefined, (client) => client.read(offset, buffer));
    this.#unflushed.assertKept(offset, buffer.length);
  }

  /** See NbdClient.write. */
  async write(offset: number, buffer: Uint8Array, flags: number): Promise<void> {
    const change = { offset, lengthBytes: buffer.length };
    await this.#run(change, async (client) => {
      await client.write(offset, buffer, flags);
      this.#answered(client, change, flags);
    });
  }

  /** Whether writeFile() sends any: connections are all alike. */
  get sendsFiles(): boolean {
    return this.#clients[0]?.sendsFiles === true;
  }

  /** See NbdClient.writeFile. */
  async writeFile(
    offset: number,
    place: { file: object; position: number },
    lengthBytes: number,
    flags: number,
  ): Promise<boolean> {
    const change = { offset, lengthBytes };
    return this.#run(change, async (client) => {
      const isDone = await client.writeFile(offset, place, lengthBytes, flags);
      // Else the caller writes all of it anew: what is lost stays so until then.
      if (isDone) this.#answered(client, change, flags);
      return isDone;
    });
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const change = { offset, lengthBytes };
    await this.#run(change, async (client) => {
      await client.writeZeroes(offset, lengthBytes, flags);
      this.#answered(client, change, flags);
    });
  }

  /** The connection may have been lost between the answer's coming and now. */
  #answered(client: NbdClient, { offset, lengthBytes }: Stretch, flags: number): void {
    const isLeft = !this.#clients.includes(client);
    this.#unflushed.wrote(offset, lengthBytes, { isDurable: isDurable(flags), isLeft });
  }

  /** What it held before nobody has a claim to. */
  trim(offset: number, lengthBytes: number): Promise<void> {
    return this.#run({ offset, lengthBytes }, (client) => client.trim(offset, lengthBytes));
  }

  flush(): Promise<void> {
    return this.#unflushed.during(() => this.#run(undefined, (client) => client.flush()));
  }

  /** See NbdClient.blockStatus. */
  async blockStatus(offset: number, lengthBytes: number): Promise<Extent> {
    const extent = await this.#run(undefined, (client) => client.blockStatus(offset, lengthBytes));
    this.#unflushed.assertKept(offset, Math.min(extent.lengthBytes, lengthBytes));
    return extent;
  }

  /** See Unflushed.takeDoubtful. */
  takeDoubtful(): ByteRanges {
    return this.#unflushed.takeDoubtful();
  }

  /** Something is lost, and flushes fail. */
  get hasLost(): boolean {
    return this.#unflushed.hasLost;
  }

  /** Hangs up; what is in flight or waits for a connection fails, and what comes before the server has hung up, too. */
  abandon(): void {
    this.#era++;
    this.#isAbandoned = true;
    for (const client of [...this.#clients]) client.abandon();
    this.#deadlineMs = 0;
    this.#giveUp(errnoError('ECANCELED'));
  }

  /** Waits for what is in flight, says goodbye and hangs up; ends in any case. */
  async close(): Promise<void> {
    this.#isClosing = true;
    this.#giveUp(errnoError('ESHUTDOWN'));
    await Promise.all(this.#clients.map((client) => client.close()));
  }

  async #run<T>(change: Stretch | undefined, send: (client: NbdClient) => Promise<T>): Promise<T> {
    const turn = this.#turns++;
    let client: NbdClient;
    do {
      if (change && !this.#unsure.isEmpty) await this.#afterUnsure(change);
      client = this.#idlest() ?? (await this.#connected(turn));
    } while (change && this.#unsureBefore(change));
    const era = this.#era;
    try {
      return await send(client);
    } catch (error) {
      if (!this.#isLost(client, error) || era !== this.#era || this.#deadlineMs <= this.#nowMs()) throw error;
    }
    const again = this.#again(turn, era, send);
    if (change) this.#unsure.add(this, { ...change, over: again.then(ignore, ignore) });
    return again;
  }

  async #again<T>(turn: number, era: number, send: (client: NbdClient) => Promise<T>): Promise<T> {
    for (let sends = 2; ; sends++) {
      const client = this.#idlest() ?? (await this.#connected(turn));
      try {
        return await send(client);
      } catch (error) {
        const isOver = sends >= MAX_SENDS || era !== this.#era;
        if (!this.#isLost(client, error) || isOver || this.#deadlineMs <= this.#nowMs()) throw error;
      }
    }
  }

  /** Also where the server says that it goes, and did not do what was asked: then it is left, and waited for. */
  #isLost(client: NbdClient, error: unknown): boolean {
    if (this.#isClosing) return false;
    if (client.isLost(error)) return true;
    const isGoing = error instanceof BlockError && error.errno === 'ESHUTDOWN';
    if (!isGoing || !this.#options.reconnectDelayMs) return false;
    client.abandon();
    return true;
  }

  async #afterUnsure(change: Stretch): Promise<void> {
    for (let unsure = this.#unsureBefore(change); unsure; unsure = this.#unsureBefore(change)) await unsure;
  }

  #unsureBefore({ offset, lengthBytes }: Stretch): Promise<unknown> | undefined {
    return this.#unsure.overlapping(this, offset, lengthBytes);
  }

  #nowMs(): number {
    return this.#options.host.clock.nowMs();
  }

  /** Undefined while there is no connection, or others wait for their turn on a new one. */
  #idlest(): NbdClient | undefined {
    const [first, ...others] = this.#clients;
    if (!first) return undefined;
    if (others.length === 0 && first.inFlight < BUSY_REQUESTS) return first;
    const best = others.reduce((least, client) => (client.inFlight < least.inFlight ? client : least), first);
    if (best.inFlight >= BUSY_REQUESTS) this.#widen();
    return best;
  }

  /** One more connection, where the server is made for several; it may have no place for it. */
  #widen(): void {
    const isWanted = this.has(TransmissionFlag.canMultiConn) && this.#clients.length < MAX_CONNECTIONS;
    if (!isWanted || this.#isWidening || this.#isClosing) return;
    this.#isWidening = true;
    const [beside] = this.#clients;
    this.#connect().then(
      (client) => {
        if (this.#clients[0] !== beside || this.#isClosing) return client.abandon();
        this.#clients.push(client);
        this.#isWidening = false;
      },
      // Not tried again while these connections last.
      () => undefined,
    );
  }

  /** A connection of this session's, which is not in use yet. */
  async #connect(): Promise<NbdClient> {
    // A descriptor is one connection, and may be something else's by now.
    if (this.#options.address.type === 'fd') throw errnoError('ENOTCONN');
    const client: NbdClient = await NbdClient.connect({
      ...this.#options,
      onLost: () => this.#lost(client),
    });
    if (isSameExport(this.info, client.info)) return client;
    void client.close();
    throw new BlockError('invalid', 'The server offers another export under the same name', { errno: 'EIO' });
  }

  /** With one connection all are given up, so that there is one order of what is sent again. */
  #lost(client: NbdClient): void {
    this.#losses++;
    const gone = client.gone.then(() => void this.#leaving.delete(gone));
    this.#leaving.add(gone);
    const index = this.#clients.indexOf(client);
    if (index < 0) return;
    this.#clients.splice(index, 1);
    if (this.#clients.length === 0) this.#allLost();
    else for (const other of [...this.#clients]) other.abandon();
  }

  #allLost(): void {
    this.#isWidening = false;
    this.#unflushed.connectionLost();
    const { reconnectDelayMs = 0 } = this.#options;
    if (this.#isClosing || reconnectDelayMs === 0) return;
    this.#deadlineMs = this.#nowMs() + reconnectDelayMs;
    this.#try();
  }

  /** Waits for a connection. Errors: EIO when there is none soon enough. */
  #connected(turn: number): Promise<NbdClient> {
    if (this.#isClosing) return Promise.reject(errnoError('ESHUTDOWN'));
    const sinceMs = this.#tryingSinceMs;
    const isPatient = this.#deadlineMs > this.#nowMs();
    if (this.#isAbandoned && this.#leaving.size > 0) return Promise.reject(errnoError('EIO'));
    if (!isPatient && sinceMs !== undefined && this.#nowMs() - sinceMs >= PATIENCE_MS)
      return Promise.reject(errnoError('EIO'));
    const waiter: Waiter = { turn, result: deferred<NbdClient>() };
    this.#waiters.push(waiter);
    this.#try();
    if (!isPatient) this.#limitPatience();
    return waiter.result.promise;
  }

  #limitPatience(): void {
    this.#patienceTimer ??= this.#options.host.clock.setTimer(PATIENCE_MS, () => {
      this.#patienceTimer = undefined;
      if (this.#deadlineMs <= this.#nowMs()) this.#giveUp(errnoError('ETIMEDOUT'));
    });
  }

  /** Tries to connect, until it works or nobody waits for it any more. */
  #try(): void {
    if (this.#tryingSinceMs !== undefined) return;
    this.#tryingSinceMs = this.#nowMs();
    const leftMs = this.#deadlineMs - this.#nowMs();
    if (leftMs > 0) {
      this.#deadlineTimer?.cancel();
      this.#deadlineTimer = this.#options.host.clock.setTimer(leftMs, () =>
        this.#giveUp(errnoError('ETIMEDOUT')),
      );
    }
    this.#untilConnected().then(
      (client) => this.#use(client),
      (error: unknown) => {
        this.#tryingSinceMs = undefined;
        this.#giveUp(error);
      },
    );
  }

  async #untilConnected(): Promise<NbdClient> {
    const { clock } = this.#options.host;
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS)) {
      try {
        // What the server has not closed it may still read from.
        while (this.#leaving.size > 0) await this.#closedOrTired();
        return await this.#connect();
      } catch (error) {
        if (this.#isClosing || clock.nowMs() + pauseMs >= this.#deadlineMs) throw error;
        await clock.sleep(pauseMs);
      }
    }
  }

  /** Errors: ETIMEDOUT when a server does not close connections that were lost. */
  async #closedOrTired(): Promise<void> {
    const { clock } = this.#options.host;
    const tired = deferred();
    const patienceMs = Math.max(PATIENCE_MS, this.#deadlineMs - clock.nowMs());
    const timer = clock.setTimer(patienceMs, () => tired.reject(errnoError('ETIMEDOUT')));
    try {
      await Promise.race([Promise.all(this.#leaving), tired.promise]);
    } finally {
      timer.cancel();
    }
  }

  #use(client: NbdClient): void {
    this.#tryingSinceMs = undefined;
    this.#isAbandoned = false;
    if (this.#isClosing) return client.abandon();
    this.#unflushed.connectedAgain(this.#deadlineMs > this.#nowMs());
    this.#deadlineTimer?.cancel();
    this.#patienceTimer?.cancel();
    this.#patienceTimer = undefined;
    this.#clients.push(client);
    const waiters = this.#waiters.splice(0).sort((one, other) => one.turn - other.turn);
    for (const { result } of waiters) result.resolve(client);
  }

  /** Nobody waits for a connection any more. */
  #giveUp(reason: unknown): void {
    this.#deadlineTimer?.cancel();
    this.#patienceTimer?.cancel();
    this.#patienceTimer = undefined;
    for (const { result } of this.#waiters.splice(0))
      result.reject(errnoError('EIO', undefined, { cause: reason }));
  }
}

const ignore = (): void => undefined;

function isDurable(flags: number): boolean {
  return (flags & CommandFlag.fua) !== 0;
}

/** What the node above has taken for granted. */
function isSameExport(first: NbdExportInfo, later: NbdExportInfo): boolean {
  const hasAll = (first.flags & ~later.flags) === 0;
  const isReadOnly = (info: NbdExportInfo): boolean => (info.flags & TransmissionFlag.readOnly) !== 0;
  return (
    hasAll &&
    isReadOnly(first) === isReadOnly(later) &&
    // A disk that has grown holds all that was there.
    first.lengthBytes <= later.lengthBytes &&
    (first.blockSize?.minimum ?? 0) === (later.blockSize?.minimum ?? 0) &&
    (first.context === undefined || later.context !== undefined)
  );
}
