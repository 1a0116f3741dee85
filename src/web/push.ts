import type { ServerResponse } from 'node:http';
import type { HostClock, HostTimer } from '../host/host.js';
import type { LogEntry, ServerState } from './messages.js';

/** What somebody who comes later is told. */
const KEPT_ENTRIES = 2000;
const KEPT_BYTES = 4 * 1024 * 1024;
/** What an event says beyond that is left out. */
const MOST_ENTRY_BYTES = 16 * 1024;
/** Entries go out together; of a flood, the last ones. */
const TOGETHER_MS = 50;
const MOST_TOGETHER = 200;
const MOST_VIEWERS = 64;
/** One who does not take what is sent is let go: it may come again, and then gets what there is. */
const MOST_WAITING_BYTES = 4 * 1024 * 1024;

/** Server-sent events: states of servers and the log, to all who watch. What is sent is made once. */
export class Push {
  readonly #viewers = new Set<ServerResponse>();
  readonly #states = new Map<string, string>();
  /** Each as it is told, the oldest first. */
  readonly log: string[] = [];
  #logBytes = 0;
  /** That are not sent yet. */
  #waiting: string[] = [];
  #sending: HostTimer | undefined;
  readonly #clock: HostClock;
  readonly #onViewers: (count: number) => void;

  /** `onViewers` hears how many watch. */
  constructor(clock: HostClock, onViewers: (count: number) => void) {
    this.#clock = clock;
    this.#onViewers = onViewers;
  }

  /** Whether one more can watch. It begins with all that is known. */
  add(response: ServerResponse, greeting: object): boolean {
    if (this.#viewers.size >= MOST_VIEWERS) return false;
    response.write(message('hello', toJson(greeting)));
    for (const state of this.#states.values()) response.write(message('state', state));
    this.#sendWaiting();
    response.write(message('log', `[${this.log.join(',')}]`));
    this.#viewers.add(response);
    response.on('close', () => {
      this.#viewers.delete(response);
      this.#onViewers(this.#viewers.size);
    });
    this.#onViewers(this.#viewers.size);
    return true;
  }

  state(state: ServerState): void {
    const text = toJson(state);
    this.#states.set(state.name, text);
    this.#send(message('state', text));
  }

  entry(entry: LogEntry): void {
    const text = entryText(entry);
    this.log.push(text);
    this.#logBytes += text.length;
    while (this.log.length > KEPT_ENTRIES || this.#logBytes > KEPT_BYTES)
      this.#logBytes -= this.log.shift()?.length ?? 0;
    this.#waiting.push(text);
    if (this.#waiting.length > MOST_TOGETHER) this.#waiting.shift();
    this.#sending ??= this.#clock.setTimer(TOGETHER_MS, () => this.#sendWaiting());
  }

  close(): void {
    this.#sending?.cancel();
    for (const viewer of this.#viewers) viewer.end();
  }

  #sendWaiting(): void {
    this.#sending?.cancel();
    this.#sending = undefined;
    if (this.#waiting.length === 0) return;
    this.#send(message('log', `[${this.#waiting.join(',')}]`));
    this.#waiting = [];
  }

  #send(text: string): void {
    for (const viewer of this.#viewers) {
      if (viewer.writableLength > MOST_WAITING_BYTES) viewer.destroy();
      else viewer.write(text);
    }
  }
}

function entryText(entry: LogEntry): string {
  const text = toJson(entry);
  if (text.length <= MOST_ENTRY_BYTES) return text;
  const { timeMs, server, kind, name } = entry;
  const cut = `${text.length} characters, which are too many to be kept`;
  return toJson({ timeMs, server, kind, name: name.slice(0, 200), text: cut });
}

/** JSON has no line ends of its own. */
function message(event: string, data: string): string {
  return `event: ${event}\ndata: ${data}\n\n`;
}

/** Numbers beyond 2^53 are told as near as JavaScript has them. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one));
}
