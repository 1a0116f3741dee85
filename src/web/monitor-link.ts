import { Abandonable } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { Host, HostTimer, SocketAddress } from '../host/host.js';
import { answerTo } from '../schema/answer.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import type { ClusterMap } from '../view/cluster-map.js';
import { connectMonitor, lookAt } from '../view/connect.js';
import { readLiveMap } from '../view/live-map.js';
import type { View } from '../view/model.js';
import { Rates } from '../view/rates.js';
import type { QmpClient } from '../wire/qmp/client.js';
import { QmpError } from '../wire/qmp/registry.js';
import { Extras, type ExtraSources } from './extras.js';
import { LOOK_MS, LookPace } from './look-pace.js';
import type { JobEnd, LogEntry, ServerState } from './messages.js';

export interface LinkOptions {
  readonly host: Host;
  readonly address: SocketAddress;
  readonly name: string;
  readonly listener: LinkListener;
  readonly lookAtFiles?: ExtraSources['lookAtFiles'];
  /** Where the server does not tell whose clusters a disk shows. */
  readonly readMap: ExtraSources['readMap'];
}

export interface LinkListener {
  onState(state: ServerState): void;
  onLog(entry: LogEntry): void;
}

/** A server is looked at once a second (LOOK_MS), sooner after an event, and not at all while nobody watches. */
const SOON_MS = 100;
/** A server that hangs is told of then, and waited for. */
const SILENT_MS = 5000;
/** A plan that waits longer for a map of the disk is told without. */
const MAP_WAIT_MS = 2000;

/** One server's monitor: held while somebody watches, since QEMU's serve one client. */
export class MonitorLink {
  readonly name: string;
  state: ServerState;
  readonly #host: Host;
  readonly #address: SocketAddress;
  readonly #listener: LinkListener;
  readonly #readMap: ExtraSources['readMap'];
  readonly #extras: Extras;
  #client: QmpClient | undefined;
  #isClosed = false;
  #connecting: Promise<QmpClient> | undefined;
  readonly #ends = new WeakMap<QmpClient, Abandonable>();
  #rates = new Rates();
  /** How jobs ended, and whether that is old. */
  #ended: readonly JobEnd[] = [];
  #isEndedOld = true;
  #timer: HostTimer | undefined;
  #dueMs = Infinity;
  readonly #pace = new LookPace();
  #isWatched = false;
  /** Of people, not yet answered. */
  #questions = 0;
  #isLooking = false;

  constructor({ host, address, name, listener, lookAtFiles, readMap }: LinkOptions) {
    this.#host = host;
    this.#address = address;
    this.name = name;
    this.#listener = listener;
    this.#readMap = readMap;
    this.#extras = new Extras(host.clock, { lookAtFiles, readMap: (view, id) => this.mapOf(view, id) });
    this.state = { name, disks: {}, timeMs: 0 };
  }

  /** Begins to look, or lets the monitor go. */
  watch(isWatched: boolean): void {
    if (this.#isWatched === isWatched) return;
    this.#isWatched = isWatched;
    if (isWatched) this.#lookIn(0);
    else this.#letGo();
  }

  /** Ends, whatever is still asked of a server that may never answer. */
  close(): void {
    this.#isClosed = true;
    this.watch(false);
    this.#timer?.cancel();
    this.#client?.close();
  }

  /** Something is asked of the server; the monitor is let go afterwards where nobody watches. Errors: those of connecting. */
  async #ask<T>(question: (client: QmpClient) => Promise<T>): Promise<T> {
    this.#questions++;
    try {
      return await question(await this.#connected());
    } finally {
      this.#questions--;
      if (!this.#isWatched) this.#letGo();
    }
  }

  /** What the server says, over a client that is held. Errors: its own (QmpError). */
  async executeOn(client: QmpClient, command: string, args: JsonObject): Promise<JsonValue> {
    const name = command;
    this.log({ kind: 'command', name, data: args });
    try {
      return await client.execute(command, args);
    } catch (error) {
      this.log({ kind: 'error', name, text: textOf(error) });
      throw error;
    } finally {
      if (this.#isWatched) this.#lookIn(SOON_MS);
    }
  }

  /** The monitor stays connected until `work` is over. Errors: those of connecting; closed when the server goes. */
  async hold<T>(work: (client: QmpClient) => Promise<T>): Promise<T> {
    return this.#ask((client) => this.#endOf(client).during(work(client)));
  }

  /** What holds of a client that lives long, and lets go of answers that have come. */
  #endOf(client: QmpClient): Abandonable {
    const known = this.#ends.get(client);
    if (known) return known;
    const end = new Abandonable();
    this.#ends.set(client, end);
    void client.closed.then(() => end.abandon(new BlockError('closed', `${this.name} is gone`)));
    return end;
  }

  /**
   * The same for what changes something once it calls `begins`. Errors: a server that goes away then is told of with what that
   * may mean.
   */
  async holdToChange<T>(work: (client: QmpClient, begins: () => void) => Promise<T>): Promise<T> {
    let hasBegun = false;
    return this.hold((client) => work(client, () => void (hasBegun = true))).catch((error: unknown) => {
      if (!hasBegun || !(error instanceof BlockError) || error.kind !== 'closed') throw error;
      const hint = 'What it was asked last may have been done: look once it is back.';
      throw new BlockError('closed', `${this.name} went away in the midst of it`, { hint, cause: error });
    });
  }

  /** The same for what a server answers at once. Errors: timeout, too, when it hangs. */
  async holdShortly<T>(work: (client: QmpClient) => Promise<T>): Promise<T> {
    return this.answered(this.hold(work));
  }

  /** What a server answers at once. Errors: timeout when it hangs. */
  async answered<T>(answer: Promise<T>): Promise<T> {
    let timer: HostTimer | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      timer = this.#host.clock.setTimer(SILENT_MS, () =>
        reject(new BlockError('timeout', this.#silenceText())),
      );
    });
    return Promise.race([answer, late]).finally(() => timer?.cancel());
  }

  /** A view that is no older than this call. Errors: those of connecting; timeout when the server hangs. */
  async lookNow(): Promise<View> {
    return this.holdShortly(lookAt);
  }

  #silenceText(): string {
    return `${this.name} has not answered for ${SILENT_MS / 1000} s`;
  }

  /** Whose clusters an image's disk shows, as the server tells, or its files. Errors: those of connecting and reading. */
  async mapOf(view: View, id: string): Promise<ClusterMap | undefined> {
    const live = await this.#ask((client) =>
      readLiveMap((command, args) => client.execute(command, args), view, id),
    );
    return live ?? this.#readMap(view, id);
  }

  /** The same, where it takes no longer than people wait for a plan. */
  async mapSoon(view: View, id: string): Promise<ClusterMap | undefined> {
    let timer: HostTimer | undefined;
    const late = new Promise<undefined>((resolve) => {
      timer = this.#host.clock.setTimer(MAP_WAIT_MS, () => resolve(undefined));
    });
    const map = this.mapOf(view, id).catch(() => undefined);
    return Promise.race([map, late]).finally(() => timer?.cancel());
  }

  #letGo(): void {
    this.#timer?.cancel();
    this.#dueMs = Infinity;
    if (this.#questions > 0) return;
    this.#client?.close();
    this.#client = undefined;
    this.#rates = new Rates();
  }

  #connected(): Promise<QmpClient> {
    if (this.#client) return Promise.resolve(this.#client);
    this.#connecting ??= this.#connect().finally(() => (this.#connecting = undefined));
    return this.#connecting;
  }

  async #connect(): Promise<QmpClient> {
    const client = await connectMonitor(this.#host, this.#address, this.name);
    if (this.#isClosed) client.close();
    this.#client = client;
    this.#rates = new Rates();
    this.#isEndedOld = true;
    client.onEvent(({ event, data, timestamp }) => {
      if (event === 'JOB_STATUS_CHANGE') this.#isEndedOld = true;
      const toldMs = timestamp.seconds * 1000 + timestamp.microseconds / 1000;
      const timeMs = toldMs > 0 ? toldMs : this.#nowMs();
      this.#listener.onLog({ kind: 'event', name: event, data, timeMs, server: this.name });
      this.#lookIn(SOON_MS);
    });
    void client.closed.then(() => {
      if (this.#client !== client) return;
      this.#client = undefined;
      this.#tellWatchers('disconnected');
      this.#lookIn(LOOK_MS);
    });
    this.#tellWatchers('connected');
    return client;
  }

  /** Who counts comes and goes all the time: that would push out of the log what people did. */
  #tellWatchers(name: string): void {
    if (this.#isWatched) this.log({ kind: 'note', name });
  }

  #lookIn(delayMs: number): void {
    const { clock } = this.#host;
    const nowMs = clock.nowMs();
    const dueMs = this.#pace.dueMs(nowMs, delayMs);
    if (!this.#isWatched || dueMs >= this.#dueMs) return;
    this.#timer?.cancel();
    this.#dueMs = dueMs;
    this.#timer = clock.setTimer(dueMs - nowMs, () => void this.#look());
  }

  async #look(): Promise<void> {
    this.#dueMs = Infinity;
    if (this.#isLooking) return;
    this.#isLooking = true;
    const beganMs = this.#host.clock.nowMs();
    const late = this.#host.clock.setTimer(SILENT_MS, () => this.#tellOld(this.#silenceText()));
    try {
      const client = await this.#connected();
      const seen = await lookAt(client);
      const ended = await this.#readEnded(client);
      const { view, disks } = this.#rates.look(this.#extras.addTo(seen), this.#host.clock.nowMs());
      this.#tell({ view, disks: Object.fromEntries(disks), ...(ended.length > 0 && { ended }) });
    } catch (error) {
      this.#tellOld(textOf(error));
    } finally {
      late.cancel();
      this.#isLooking = false;
      this.#pace.ended(beganMs, this.#host.clock.nowMs());
      if (this.#isWatched) this.#lookIn(LOOK_MS);
      else this.#letGo();
    }
  }

  async #readEnded(client: QmpClient): Promise<readonly JobEnd[]> {
    if (!this.#isEndedOld) return this.#ended;
    // What ends meanwhile makes it old again.
    this.#isEndedOld = false;
    return (this.#ended = await readEnds(client));
  }

  /** The last view stays, as what it is: old. That a look ends because nobody watches any more is no error. */
  #tellOld(error: string): void {
    if (!this.#isWatched) return;
    this.#tell({ ...(this.state.view && { view: this.state.view }), disks: {}, error });
  }

  #tell(state: Omit<ServerState, 'name' | 'timeMs'>): void {
    this.state = { name: this.name, timeMs: this.#nowMs(), ...state };
    this.#listener.onState(this.state);
  }

  /** Something that people are told. */
  log(entry: Omit<LogEntry, 'timeMs' | 'server'>): void {
    this.#listener.onLog({ timeMs: this.#nowMs(), server: this.name, ...entry });
  }

  #nowMs(): number {
    const { seconds, microseconds } = this.#host.clock.wallClock();
    return seconds * 1000 + microseconds / 1000;
  }
}

/** None of a server that does not tell. */
async function readEnds(client: QmpClient): Promise<readonly JobEnd[]> {
  try {
    return answerTo('x-job-history', await client.execute('x-job-history'));
  } catch (error) {
    // A history that is none is no reason not to look.
    if (error instanceof QmpError || (error instanceof BlockError && error.kind === 'invalid')) return [];
    throw error;
  }
}

/** What people are told of an error. A bug of ours is no text of a server's. */
export function textOf(error: unknown): string {
  if (error instanceof QmpError) return error.message;
  if (error instanceof BlockError)
    return error.hint === undefined ? error.message : `${error.message}. ${error.hint}`;
  return `internal error: ${String(error)}`;
}
