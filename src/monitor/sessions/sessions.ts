import { BlockError } from '../../base/error.js';
import type { JsonObject } from '../../schema/types.js';
import { type Caller, type Outcome, Waiting } from '../../wire/qmp/registry.js';
import type { Parts } from '../parts.js';
import { MadeSession, type PassedMadeSession, type SessionProperties } from './session.js';
import { Inventory, MadePoint, restoreThings, type ThingsEngine } from './things.js';

type SessionsEngine = ThingsEngine & Parts<'host' | 'emit' | 'sessions'>;
type Engine = SessionsEngine & Parts<'command' | 'onEvent'>;

/** Commands that a client in a session that has ended may give as well. */
const MAKES_NOTHING = /^(query-.*|quit|x-takeover)$/;

/** All sessions of one engine. */
export class Sessions {
  readonly #byId = new Map<string, MadeSession>();
  /** In which clients are. */
  readonly #entered = new WeakMap<Caller, MadeSession>();
  #isFrozen = false;
  readonly #leftMeanwhile: Caller[] = [];

  list(): MadeSession[] {
    return [...this.#byId.values()];
  }

  /** Errors: not-found. */
  find(id: string): MadeSession {
    const session = this.#byId.get(id);
    if (!session) throw new BlockError('not-found', `Session '${id}' not found`);
    return session;
  }

  /** Errors: exists, invalid. */
  checkNewId(id: string): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new BlockError('invalid', `Invalid session ID '${id}'`);
    if (this.#byId.has(id)) throw new BlockError('exists', `Session ID '${id}' already in use`);
  }

  add(session: MadeSession): void {
    this.#byId.set(session.id, session);
  }

  forget(session: MadeSession): void {
    if (this.#byId.get(session.id) === session) this.#byId.delete(session.id);
  }

  enter(caller: Caller, session: MadeSession | undefined): void {
    if (session) this.#entered.set(caller, session);
    else this.#entered.delete(caller);
  }

  of(caller: Caller): MadeSession | undefined {
    return this.#entered.get(caller);
  }

  /** None of them ends, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    for (const session of this.list()) session.freeze();
  }

  thaw(): void {
    this.#isFrozen = false;
    for (const session of this.list()) session.thaw();
    for (const caller of this.#leftMeanwhile.splice(0)) this.left(caller);
  }

  /** A client has gone. */
  left(caller: Caller): void {
    if (this.#isFrozen) return void this.#leftMeanwhile.push(caller);
    for (const session of this.list())
      if (session.owner === caller) void session.end('client-gone').catch(() => undefined);
  }

  stop(): void {
    for (const session of this.list()) session.stop();
  }
}

/** What clients make under a session is undone when it ends. */
export function registerSessions(engine: Engine): void {
  const { sessions, registry } = engine;
  registry.around = (caller, name, args, run) => {
    const session = sessions.of(caller);
    if (!session || name.startsWith('x-session-')) return run();
    if (!session.ends) return watched(engine, session, { name, args, run });
    // What it made would be undone at once, or stay behind: its client must say which session it is part of, if any.
    return MAKES_NOTHING.test(name) ? run() : Promise.reject(hasEnded(session));
  };
  engine.hub.onGone = (caller) => sessions.left(caller);
  engine.onEvent((event) => {
    if (event === 'JOB_STATUS_CHANGE') for (const session of sessions.list()) session.look();
  });
  engine.command('x-session-open', ({ id, lease }, caller) => open(engine, caller, { id, lease }));
  engine.command('x-session-enter', ({ id }, caller) => {
    const session = sessions.find(id);
    assertOpen(session);
    if (session.owner && session.owner !== caller)
      throw new BlockError('permission', `Session '${id}' is another connection's`);
    sessions.enter(caller, session);
  });
  engine.command('x-session-leave', (_, caller) => sessions.enter(caller, undefined));
  engine.command('x-session-renew', ({ id }) => {
    const session = sessions.find(id);
    assertOpen(session);
    session.renew();
  });
  engine.command('x-session-close', ({ id }, caller) => {
    const session = sessions.find(id);
    if (sessions.of(caller) === session) sessions.enter(caller, undefined);
    return new Waiting(session.end('closed'));
  });
  engine.command('x-session-list', () => sessions.list().map((session) => session.info()));
}

function assertOpen(session: MadeSession): void {
  if (session.ends) throw hasEnded(session);
}

function hasEnded({ id }: MadeSession): BlockError {
  return new BlockError('invalid', `Session '${id}' has ended`, {
    hint: 'x-session-leave goes on without one, x-session-enter in another',
  });
}

function open(
  engine: Engine,
  caller: Caller,
  { id, lease }: { id: string; lease: number | undefined },
): void {
  const { sessions } = engine;
  sessions.checkNewId(id);
  if (lease === 0) throw new BlockError('invalid', "Parameter 'lease' expects a number of seconds");
  if (lease === undefined && caller.isConnection !== true)
    throw new BlockError('invalid', 'A session of no connection needs a lease');
  const owner = lease === undefined ? caller : undefined;
  const session = make(engine, { id, owner, leaseMs: lease === undefined ? undefined : 1000 * lease });
  if (caller.isConnection === true) sessions.enter(caller, session);
}

function make(
  engine: SessionsEngine,
  properties: Pick<SessionProperties, 'id' | 'owner' | 'leaseMs' | 'passed'>,
): MadeSession {
  const { sessions, host } = engine;
  const session: MadeSession = new MadeSession({
    ...properties,
    clock: host.clock,
    emit: (event, data) => engine.emit(event, data),
    forget: () => sessions.forget(session),
  });
  sessions.add(session);
  return session;
}

/** One of another process goes on; who owns it is told later. */
export function restoreSession(engine: SessionsEngine, passed: PassedMadeSession): MadeSession {
  const { id, leaseMs, things } = passed;
  const session = make(engine, { id, owner: undefined, leaseMs, passed });
  session.made(restoreThings(engine, things));
  return session;
}

interface Command {
  name: string;
  args: JsonObject;
  run: () => Promise<Outcome>;
}

/** Runs a command of a client's, and notes what has come to be with it: nobody else's command runs meanwhile. */
async function watched(engine: Engine, session: MadeSession, { name, args, run }: Command): Promise<Outcome> {
  const before = new Inventory(engine);
  if (name !== 'x-point-create')
    return run().finally(() => session.made(before.since(engine, session.nodes)));
  const result = await run();
  const { name: point, 'dry-run': isDryRun } = args;
  if (typeof point === 'string' && isDryRun !== true) session.made([new MadePoint(engine, point)]);
  return result;
}
