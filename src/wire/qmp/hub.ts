import { assert } from '../../base/assert.js';
import { AsyncMutex } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { NO_TRACE_OUTPUT, Trace } from '../../base/trace.js';
import type { HostClock } from '../../host/host.js';
import { EXTENSION_EVENTS } from '../../schema/extensions.js';
import type { JsonObject } from '../../schema/types.js';
import { arrayOf, enumOf, optional, struct } from '../../schema/types.js';
import { EventLimits } from './event-limits.js';
import { formatJson, type Writable } from './json-format.js';
import { type Caller, type CommandRegistry, QmpError, Waiting } from './registry.js';
import type { QmpSession } from './session.js';
import { Turns } from './turns.js';

/** Memory of messages that have begun and not ended, of all clients together. */
const MAX_UNFINISHED_BYTES = 256 * MiB;

/** What all clients together have not read, beyond which the one that is farthest behind is cut off. */
const MAX_UNREAD_BYTES = 64 * MiB;

/** The command that begins a session. */
export const NEGOTIATE = 'qmp_capabilities';
const CAPABILITIES_ARGUMENTS = struct('qmp_capabilities-arg', {
  enable: optional(arrayOf(enumOf('QMPCapability', ['oob']))),
});

/**
 * All QMP clients of one engine: commands run one at a time, in the order in which they came in; events go to every
 * client that has negotiated.
 */
export class QmpHub {
  readonly registry: CommandRegistry;
  readonly clock: HostClock;
  readonly trace: Trace;
  /** Told of an error that is no refusal of a command: a bug to report, not a crash. */
  onUnexpectedError: (error: unknown) => void = () => undefined;
  /** Owns a descriptor that a client sent and no command took. */
  onUnclaimed: (fd: number) => void = () => undefined;
  /** What is to be done after a command, before its answer; what it throws is the answer. */
  onDone: (name: string) => Promise<void> = () => Promise.resolve();
  /** A client has gone. */
  onGone: (caller: Caller) => void = () => undefined;
  /** The last client has gone. */
  onDeserted: () => void = () => undefined;
  readonly turns: Turns;
  readonly #sessions = new Set<QmpSession>();
  readonly #inBand = new AsyncMutex();
  readonly #limits: EventLimits;
  #isClosed = false;

  constructor(registry: CommandRegistry, clock: HostClock, trace = new Trace(NO_TRACE_OUTPUT)) {
    this.trace = trace;
    this.registry = registry;
    this.clock = clock;
    this.turns = new Turns(clock);
    this.#limits = new EventLimits(clock);
    registry.register({ name: NEGOTIATE, arguments: CAPABILITIES_ARGUMENTS }, () => {
      const text = 'Capabilities negotiation is already complete, command ignored';
      throw new QmpError('CommandNotFound', text);
    });
  }

  /** Sends an event now, so before the return of the command that is running; some, of which many may come, later or not. */
  emit(event: string, data: JsonObject): void {
    this.#limits.pass(event, data, (told) => this.#tell(event, told));
  }

  #tell(event: string, data: JsonObject): void {
    const timestamp = this.clock.wallClock();
    const { qmpEvent } = this.trace;
    if (qmpEvent.isOn) qmpEvent.say(`event ${event} data ${formatJson(data)}`);
    const whole = eventMessage(timestamp, event, data);
    const plain = EXTENSION_EVENTS.has(event)
      ? undefined
      : eventMessage(timestamp, event, withoutExtensions(data));
    for (const session of this.#sessions) {
      const message = session.hasExtensions ? whole : plain;
      if (session.isNegotiated && message) session.send(message);
    }
    this.#cutOff();
  }

  /** Clients that do not read may keep only so much of our memory. */
  #cutOff(): void {
    const sizeOf = (session: QmpSession): number => session.unreadBytes;
    relieve(this.#sessions, sizeOf, MAX_UNREAD_BYTES, (largest) => largest.drop());
  }

  /** Nor may those that begin messages and do not end them. */
  limitUnfinished(): void {
    const sizeOf = (session: QmpSession): number => session.unfinishedBytes;
    relieve(this.#sessions, sizeOf, MAX_UNFINISHED_BYTES, (largest) => largest.refuse());
  }

  /** One command, after all that came in before it. Errors: kind closed after close(); those of the command. */
  async execute(name: string, args: JsonObject, caller?: Caller): Promise<Writable> {
    const outcome = await this.inBand(async () => {
      caller?.begins?.();
      const result = await this.registry.execute(name, args, caller);
      await this.onDone(name);
      return result;
    });
    if (!(outcome instanceof Waiting)) return outcome;
    await outcome.result;
    return {};
  }

  /** The same of other work than a command's. */
  inBand<T>(work: () => Promise<T>): Promise<T> {
    return this.#inBand.run(() => {
      if (this.#isClosed) throw new BlockError('closed', 'The engine is closed');
      return work();
    });
  }

  /** One command ahead of all others. Errors: as of execute. */
  async executeNow(name: string, args: JsonObject, caller: Caller): Promise<Writable> {
    if (this.#isClosed) throw new BlockError('closed', 'The engine is closed');
    const outcome = await this.registry.execute(name, args, caller);
    assert(!(outcome instanceof Waiting), () => `${name} waits, and may run ahead of others`);
    return outcome;
  }

  /** Commands that wait, and later ones, are refused. Resolves when the one that runs is done. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#inBand.run(() => Promise.resolve());
  }

  list(): QmpSession[] {
    return [...this.#sessions];
  }

  add(session: QmpSession): void {
    this.#sessions.add(session);
  }

  remove(session: QmpSession): void {
    this.#sessions.delete(session);
    this.onGone(session);
    if (this.#sessions.size === 0) this.onDeserted();
  }
}

function eventMessage(timestamp: Writable, event: string, data: JsonObject): { [key: string]: Writable } {
  return Object.keys(data).length > 0 ? { timestamp, event, data } : { timestamp, event };
}

/** No event of QEMU has members that begin so. */
function withoutExtensions(data: JsonObject): JsonObject {
  return Object.fromEntries(Object.entries(data).filter(([name]) => !name.startsWith('x-')));
}

/** Takes from those that have most until all together are within the bound. */
function relieve<T>(
  items: Iterable<T>,
  sizeOf: (item: T) => number,
  mostBytes: number,
  free: (largest: T) => void,
): void {
  for (;;) {
    let sum = 0;
    let largest: T | undefined;
    for (const item of items) {
      sum += sizeOf(item);
      if (largest === undefined || sizeOf(item) > sizeOf(largest)) largest = item;
    }
    if (sum <= mostBytes || largest === undefined) return;
    free(largest);
  }
}
