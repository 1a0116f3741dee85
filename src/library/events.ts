import { BlockError } from '../base/error.js';
import { Notifier } from '../base/async.js';
import { MAX_WAITING_EVENTS } from '../base/limits.js';
import type { EngineParts } from '../monitor/parts.js';
import { type EventData, type EventName, EVENTS } from '../schema/events.js';

/** One event, told apart by its name. */
export type EngineEvent<N extends EventName = EventName> = {
  [E in N]: { readonly event: E; readonly data: EventData<E> };
}[N];

export interface EventOptions<N extends EventName> {
  /** Only these (all). */
  only?: readonly N[];
  /** Only those of them for which this holds. */
  where?: (event: EngineEvent<N>) => boolean;
  /** Ends the iteration; no error. */
  signal?: AbortSignal;
}

/** Events from the call on, kept until they are taken. */
export class EventStream<N extends EventName> implements AsyncIterableIterator<EngineEvent<N>> {
  readonly #waiting: EngineEvent<N>[] = [];
  readonly #changed = new Notifier();
  readonly #stop: () => void;
  #isOver = false;
  #failure: BlockError | undefined;

  constructor(engine: EngineParts, options: EventOptions<N>) {
    const { only, where, signal } = options;
    for (const name of only ?? [])
      if (EVENTS[name] === undefined) throw new BlockError('invalid', `There is no event '${String(name)}'`);
    const wanted: ReadonlySet<string> | undefined = only && new Set(only);
    const removeListener = engine.onEvent((event, data) => {
      if (wanted && !wanted.has(event)) return;
      const told = { event, data } as unknown as EngineEvent<N>;
      if (!where || where(told)) this.#push(told);
    });
    const end = (): void => this.#end();
    signal?.addEventListener('abort', end);
    this.#stop = () => {
      removeListener();
      signal?.removeEventListener('abort', end);
    };
    void engine.ended.then(end);
    if (signal?.aborted) end();
  }

  #push(event: EngineEvent<N>): void {
    if (this.#waiting.length >= MAX_WAITING_EVENTS) {
      const text = `${MAX_WAITING_EVENTS} events wait to be taken; later ones are lost`;
      this.#failure = new BlockError('limit', text);
      return this.#end();
    }
    this.#waiting.push(event);
    this.#changed.notify();
  }

  #end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stop();
    this.#changed.notify();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  /** Errors: kind limit, after the events that were kept, when too many were not taken. */
  async next(): Promise<IteratorResult<EngineEvent<N>, undefined>> {
    await this.#changed.until(() => this.#waiting.length > 0 || this.#isOver);
    const value = this.#waiting.shift();
    if (value) return { value, done: false };
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure) throw failure;
    return { value: undefined, done: true };
  }

  async return(): Promise<IteratorResult<EngineEvent<N>, undefined>> {
    this.#waiting.length = 0;
    this.#end();
    return { value: undefined, done: true };
  }
}
