import type { ServerResponse } from 'node:http';
import type { HostClock, HostTimer } from '../host/host.js';
import type { LogEntry, ServerState } from './messages.js';
import { SLOW_READER_MS, toJson } from './responses.js';

/** What somebody who comes later is told. */
const KEPT_ENTRIES = 2000;
const KEPT_BYTES = 4 * 1024 * 1024;
/** What an event says beyond that is left out. */
const MOST_ENTRY_BYTES = 16 * 1024;
/** Entries go out together; of a flood, the last ones. */
const TOGETHER_MS = 50;
const MOST_TOGETHER = 200;
const MOST_VIEWERS = 64;
/** A browser makes six connections to a server at most, for all its tabs, and needs some for what they ask. */
const MOST_TABS = 4;

/** Who watches: what it is not sent while it has not taken what it was sent before. */
interface Behind {
  /** That it is a tab of. */
  readonly browser: string | undefined;
  /** Servers of which there is a newer state. */
  readonly states: Set<string>;
  /** Entries at the end of the log. */
  entries: number;
}

/**
 * Server-sent events: states of servers and the log, to all who watch. What is sent is made once. One who takes it slowly gets
 * the newest states alone; one who takes nothing is let go, and may come again.
 */
export class Push {
  readonly #viewers = new Map<ServerResponse, Behind>();
  readonly #states = new Map<string, Buffer>();
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

  /**
   * Whether one more can watch. It begins with all that is known. Of a `browser` the tabs that have watched for longest step
   * aside.
   */
  add(response: ServerResponse, greeting: object, browser?: string): boolean {
    if (this.#viewers.size >= MOST_VIEWERS) return false;
    if (browser !== undefined) this.#makeRoom(browser);
    response.write(message('hello', toJson(greeting)));
    this.#sendWaiting();
    const behind: Behind = { browser, states: new Set(this.#states.keys()), entries: this.log.length };
    this.#viewers.set(response, behind);
    response.on('timeout', () => response.destroy());
    response.on('drain', () => this.#catchUp(response, behind));
    response.on('close', () => {
      this.#viewers.delete(response);
      this.#onViewers(this.#viewers.size);
    });
    this.#catchUp(response, behind);
    this.#onViewers(this.#viewers.size);
    return true;
  }

  state(state: ServerState): void {
    const made = message('state', toJson(state));
    this.#states.set(state.name, made);
    this.#send(made, (behind) => behind.states.add(state.name));
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
    for (const viewer of [...this.#viewers.keys()]) this.#dismiss(viewer);
  }

  #makeRoom(browser: string): void {
    const tabs = [...this.#viewers].filter(([, behind]) => behind.browser === browser);
    for (const [viewer] of tabs.slice(0, Math.max(0, tabs.length + 1 - MOST_TABS)))
      this.#dismiss(viewer, message('aside', '{}'));
  }

  /** It is sent nothing more. */
  #dismiss(viewer: ServerResponse, last: Buffer | string = ''): void {
    this.#viewers.delete(viewer);
    viewer.setTimeout(SLOW_READER_MS);
    viewer.end(last);
  }

  #sendWaiting(): void {
    this.#sending?.cancel();
    this.#sending = undefined;
    if (this.#waiting.length === 0) return;
    const { length } = this.#waiting;
    this.#send(logMessage(this.#waiting), (behind) => {
      behind.entries = Math.min(behind.entries + length, this.log.length);
    });
    this.#waiting = [];
  }

  #send(made: Buffer, orKeep: (behind: Behind) => void): void {
    for (const [viewer, behind] of this.#viewers)
      if (viewer.writableNeedDrain) orKeep(behind);
      else write(viewer, made);
  }

  /** All at once: states are kept anyway, and of the log there is no more than a page shows. */
  #catchUp(viewer: ServerResponse, behind: Behind): void {
    if (!this.#viewers.has(viewer)) return;
    viewer.setTimeout(0);
    for (const name of behind.states) {
      const state = this.#states.get(name);
      if (state) write(viewer, state);
    }
    behind.states.clear();
    // The last ones go out to all together.
    const end = this.log.length - this.#waiting.length;
    const missed = this.log.slice(Math.max(0, end - behind.entries), end);
    behind.entries = 0;
    if (missed.length > 0) write(viewer, logMessage(missed));
  }
}

function write(viewer: ServerResponse, made: Buffer): void {
  if (!viewer.write(made)) viewer.setTimeout(SLOW_READER_MS);
}

function logMessage(entries: readonly string[]): Buffer {
  return message('log', `[${entries.join(',')}]`);
}

function entryText(entry: LogEntry): string {
  const text = toJson(entry);
  if (text.length <= MOST_ENTRY_BYTES) return text;
  const { timeMs, server, kind, name } = entry;
  const cut = `${text.length} characters, which are too many to be kept`;
  return toJson({ timeMs, server, kind, name: name.slice(0, 200), text: cut });
}

/** JSON has no line ends of its own. */
function message(event: string, data: string): Buffer {
  return Buffer.from(`event: ${event}\ndata: ${data}\n\n`);
}
