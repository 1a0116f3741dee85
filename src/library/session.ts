import type { Engine } from '../monitor/engine.js';
import type { CommandArguments, CommandName, CommandResult, OptionalArguments } from '../schema/commands.js';
import type { Caller } from '../wire/qmp/registry.js';

export interface SessionOptions {
  /** In seconds; renew() begins it anew. Without, the session lasts until it is closed. */
  lease?: number;
}

export type SessionInfo = CommandResult<'x-session-list'>[number];

/**
 * What your program makes through it is undone, the last thing first, when it is closed or its lease is over: nodes,
 * filters, bitmaps, jobs, exports and points in time. Nothing of anybody else's is touched.
 */
export class Session implements AsyncDisposable {
  readonly id: string;
  readonly #engine: Engine;
  readonly #caller: Caller;

  private constructor(engine: Engine, caller: Caller, id: string) {
    this.#engine = engine;
    this.#caller = caller;
    this.id = id;
  }

  /** Errors: exists, invalid. */
  static async open(engine: Engine, id: string, { lease }: SessionOptions): Promise<Session> {
    const caller: Caller = { takeDescriptor: () => undefined, hasExtensions: true, isConnection: true };
    await engine.hub.execute('x-session-open', { id, ...(lease !== undefined && { lease }) }, caller);
    return new Session(engine, caller, id);
  }

  /** Runs a command, as Engine.execute() does; what it makes is part of the session. Errors: those of the command. */
  execute<N extends CommandName>(name: N, ...[args]: OptionalArguments<N>): Promise<CommandResult<N>> {
    const given = (args ?? {}) as CommandArguments<N> & object;
    return this.#engine.hub.execute(name, given, this.#caller) as Promise<CommandResult<N>>;
  }

  /** What there is of it; undefined: it has ended, and all is undone. */
  async info(): Promise<SessionInfo | undefined> {
    const all = await this.#engine.execute('x-session-list');
    return all.find(({ id }) => id === this.id);
  }

  /** Errors: not-found, invalid when it has ended. */
  async renew(): Promise<void> {
    await this.#engine.execute('x-session-renew', { id: this.id });
  }

  /** Errors: busy for what cannot be undone yet, and is tried again; not-found when it is over. */
  async close(): Promise<void> {
    await this.#engine.execute('x-session-close', { id: this.id });
  }

  /** Closes it, unless it is over. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (await this.info()) await this.close();
  }
}
