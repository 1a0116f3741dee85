import { AsyncMutex } from '../../base/async.js';
import { toBlockError } from '../../base/error.js';

/** How many ends are remembered, for those who ask again after a time-out. */
const MAX_REMEMBERED = 1000;

export type DeletionState = 'queued' | 'running' | 'done';

interface Entry {
  readonly name: string;
  readonly id: string;
  state: DeletionState;
}

/** Deletions of points, one after the other. Who asks for one that is there already joins it: find(). */
export class DeletionQueue {
  readonly #turn = new AsyncMutex();
  /** Those that wait and the one that runs. Of a point there are several where some of its disks were asked for later. */
  readonly #entries = new Set<Entry>();
  /** Names of points that are gone, and how they ended that are not. */
  readonly #done = new Map<string, string>();
  readonly #failed = new Map<string, string>();
  readonly #onEnd: (name: string, id: string, error: string | undefined) => void;

  constructor(onEnd: (name: string, id: string, error: string | undefined) => void) {
    this.#onEnd = onEnd;
  }

  /** Names of those that wait or run, in order. */
  get names(): string[] {
    return [...this.#entries].map(({ name }) => name);
  }

  find(name: string): Entry | undefined {
    return [...this.#entries].findLast((entry) => entry.name === name);
  }

  /** The id of a point that was deleted, and its name not given again. */
  idOfDone(name: string): string | undefined {
    return this.#done.get(name);
  }

  /** Why the last try to delete a point ended unfinished. */
  failureOf(id: string): string | undefined {
    return this.#failed.get(id);
  }

  /** The name belongs to another point now. */
  nameTaken(name: string): void {
    this.#done.delete(name);
  }

  /** Begins one. */
  add(name: string, id: string, work: () => Promise<void>): Entry {
    const entry: Entry = { name, id, state: this.#turn.isHeld ? 'queued' : 'running' };
    this.#entries.add(entry);
    void this.#run(entry, work);
    return entry;
  }

  async #run(entry: Entry, work: () => Promise<void>): Promise<void> {
    const { name, id } = entry;
    let failure: string | undefined;
    try {
      await this.#turn.run(async () => {
        entry.state = 'running';
        await work();
      });
    } catch (error) {
      failure = toBlockError(error).message;
    }
    this.#entries.delete(entry);
    if (failure === undefined) remember(this.#done, name, id);
    if (failure === undefined) this.#failed.delete(id);
    else remember(this.#failed, id, failure);
    this.#onEnd(name, id, failure);
  }
}

function remember(map: Map<string, string>, key: string, value: string): void {
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > MAX_REMEMBERED && oldest !== undefined) map.delete(oldest);
}
