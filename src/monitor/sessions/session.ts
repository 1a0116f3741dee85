import { BlockError } from '../../base/error.js';
import type { Node } from '../../block/node.js';
import type { HostClock, HostTimer } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import type { Caller } from '../../wire/qmp/registry.js';
import { MadeNode, type Thing } from './things.js';

/** What could not be undone is tried again so soon, and then less and less often. */
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 30_000;

export type SessionEnd = 'closed' | 'client-gone' | 'lease-over';

export interface SessionProperties {
  readonly id: string;
  readonly clock: HostClock;
  /** With which it ends; undefined: with its lease. */
  readonly owner: Caller | undefined;
  readonly leaseMs: number | undefined;
  /** What another process had of it. */
  readonly passed?: PassedMadeSession;
  readonly emit: (event: string, data: JsonObject) => void;
  /** Nothing of it is left. */
  readonly forget: () => void;
}

/** A session for another process: how much of its lease is left, and what there is of it. */
export interface PassedMadeSession {
  readonly id: string;
  readonly leaseMs?: number;
  readonly leftMs?: number;
  readonly things: ReadonlyArray<Pick<Thing, 'type' | 'name'>>;
}

/** What a client has made, so that nothing of it stays behind when the client ends. */
export class MadeSession {
  readonly id: string;
  #owner: Caller | undefined;
  readonly #properties: SessionProperties;
  readonly #things: Thing[] = [];
  readonly #failures = new Map<Thing, string>();
  #ends: SessionEnd | undefined;
  #lease: HostTimer | undefined;
  #leaseOverMs = 0;
  #retry: HostTimer | undefined;
  #undoing: Promise<void> | undefined;
  #retryMs = FIRST_RETRY_MS;

  constructor(properties: SessionProperties) {
    this.#properties = properties;
    this.id = properties.id;
    this.#owner = properties.owner;
    this.#setLease(properties.passed?.leftMs ?? properties.leaseMs);
  }

  get owner(): Caller | undefined {
    return this.#owner;
  }

  /** One of another process is the client's that it was. */
  ownedBy(caller: Caller): void {
    this.#owner = caller;
  }

  /** One of another process: its client has gone meanwhile. */
  endWithoutOwner(): void {
    if (this.#properties.leaseMs === undefined && !this.#owner)
      void this.end('client-gone').catch(() => undefined);
  }

  get ends(): SessionEnd | undefined {
    return this.#ends;
  }

  /** Nodes of its own. */
  get nodes(): Set<Node> {
    return new Set(this.#things.flatMap((thing) => (thing instanceof MadeNode ? [thing.node] : [])));
  }

  renew(): void {
    this.#setLease(this.#properties.leaseMs);
  }

  #setLease(leftMs: number | undefined): void {
    if (leftMs === undefined) return;
    const { clock } = this.#properties;
    this.#lease?.cancel();
    this.#leaseOverMs = clock.nowMs() + leftMs;
    this.#lease = clock.setTimer(leftMs, () => void this.end('lease-over').catch(() => undefined));
  }

  /** Its lease does not end, until thaw(). */
  freeze(): void {
    this.#lease?.cancel();
  }

  thaw(): void {
    if (this.#properties.leaseMs !== undefined && !this.#ends) this.#setLease(this.#leftMs());
  }

  #leftMs(): number {
    return Math.max(0, this.#leaseOverMs - this.#properties.clock.nowMs());
  }

  /** For another process. It does not end. */
  passed(): PassedMadeSession {
    this.#drop();
    const { leaseMs } = this.#properties;
    const lease = leaseMs === undefined ? {} : { leaseMs, leftMs: this.#leftMs() };
    return { id: this.id, ...lease, things: this.#things.map(({ type, name }) => ({ type, name })) };
  }

  /** A command has made these. One that ends undoes them, too. */
  made(things: readonly Thing[]): void {
    this.#things.push(...things);
    if (this.#ends && things.length > 0) this.#tryAgain();
  }

  info(): JsonObject {
    this.#drop();
    const isLeased = this.#properties.leaseMs !== undefined && this.#ends === undefined;
    return {
      id: this.id,
      ...(this.#ends && { ends: this.#ends }),
      ...(isLeased && { 'lease-left': Math.ceil(this.#leftMs() / 1000) }),
      things: this.#things.map((thing) => {
        const failure = this.#failures.get(thing);
        return { type: thing.type, name: thing.name, ...(failure !== undefined && { failure }) };
      }),
    };
  }

  /** What has ended by itself, was undone by somebody, or is a guest's now. */
  #drop(): void {
    for (let i = this.#things.length - 1; i >= 0; i--) {
      const thing = this.#things[i];
      if (!thing?.isGone()) continue;
      this.#things.splice(i, 1);
      this.#failures.delete(thing);
    }
  }

  /** A job of its own may have brought a guest to one of its nodes. */
  look(): void {
    if (!this.#ends) this.#drop();
  }

  /** Undoes all, the last thing first. Resolves when each was tried once. Errors: busy, naming what is left. */
  async end(reason: SessionEnd): Promise<void> {
    this.#ends ??= reason;
    this.#lease?.cancel();
    await this.#undo();
    const [first] = this.#failures;
    if (!first) return;
    const [{ type, name }, error] = first;
    const more = this.#failures.size > 1 ? `, and ${this.#failures.size - 1} more` : '';
    throw new BlockError(
      'busy',
      `Session '${this.id}' is not undone yet: ${type} '${name}': ${error}${more}`,
      {
        hint: 'It is tried again',
      },
    );
  }

  #undo(): Promise<void> {
    this.#undoing ??= this.#undoOnce().finally(() => (this.#undoing = undefined));
    return this.#undoing;
  }

  async #undoOnce(): Promise<void> {
    this.#retry?.cancel();
    this.#drop();
    for (const thing of [...this.#things].reverse()) await this.#undoThing(thing);
    this.#drop();
    if (this.#things.length > 0) return this.#tryAgain();
    this.#properties.emit('X_SESSION_ENDED', { session: this.id, reason: this.#ends ?? 'closed' });
    this.#properties.forget();
  }

  async #undoThing(thing: Thing): Promise<void> {
    const { type, name } = thing;
    try {
      await thing.undo();
      this.#failures.delete(thing);
    } catch (reason) {
      const error = reason instanceof Error ? reason.message : String(reason);
      if (this.#failures.get(thing) === error) return;
      this.#failures.set(thing, error);
      this.#properties.emit('X_SESSION_UNDO_FAILED', { session: this.id, type, name, error });
    }
  }

  #tryAgain(): void {
    this.#retry?.cancel();
    const afterMs = this.#retryMs;
    this.#retryMs = Math.min(2 * afterMs, LAST_RETRY_MS);
    this.#retry = this.#properties.clock.setTimer(afterMs, () => void this.#undo());
  }

  /** The engine ends, and with it all that there is. */
  stop(): void {
    this.#lease?.cancel();
    this.#retry?.cancel();
    this.#things.length = 0;
  }
}
