import type { ServerResponse } from 'node:http';
import type { LogEntry, ServerState } from './messages.js';

/** What somebody who comes later is told. */
const KEPT_ENTRIES = 2000;
const MOST_VIEWERS = 64;
/** One who does not take what is sent is let go: it may come again, and then gets what there is. */
const MOST_WAITING_BYTES = 4 * 1024 * 1024;

/** Server-sent events: states of servers and the log, to all who watch. What is sent is made once. */
export class Push {
  readonly #viewers = new Set<ServerResponse>();
  readonly #states = new Map<string, string>();
  readonly log: LogEntry[] = [];
  readonly #onViewers: (count: number) => void;

  /** `onViewers` hears how many watch. */
  constructor(onViewers: (count: number) => void) {
    this.#onViewers = onViewers;
  }

  /** Whether one more can watch. It begins with all that is known. */
  add(response: ServerResponse, greeting: object): boolean {
    if (this.#viewers.size >= MOST_VIEWERS) return false;
    response.write(message('hello', toJson(greeting)));
    for (const state of this.#states.values()) response.write(message('state', state));
    response.write(message('log', toJson(this.log)));
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
    this.log.push(entry);
    if (this.log.length > KEPT_ENTRIES) this.log.shift();
    this.#send(message('log', toJson([entry])));
  }

  close(): void {
    for (const viewer of this.#viewers) viewer.end();
  }

  #send(text: string): void {
    for (const viewer of this.#viewers) {
      if (viewer.writableLength > MOST_WAITING_BYTES) viewer.destroy();
      else viewer.write(text);
    }
  }
}

/** JSON has no line ends of its own. */
function message(event: string, data: string): string {
  return `event: ${event}\ndata: ${data}\n\n`;
}

/** Numbers beyond 2^53 are told as near as JavaScript has them. */
function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one));
}
