import type { LogEntry, ServerState } from '../messages.js';

/** What the page knows; everything comes by one stream of events. */
export interface Store {
  readonly servers: readonly string[];
  readonly isReadOnly: boolean;
  readonly hasConsole: boolean;
  readonly states: Readonly<Record<string, ServerState>>;
  readonly log: readonly LogEntry[];
  readonly isConnected: boolean;
}

export const EMPTY: Store = {
  servers: [],
  isReadOnly: true,
  hasConsole: false,
  states: {},
  log: [],
  isConnected: false,
};

const KEPT_ENTRIES = 2000;

/** Calls `onChange` with each new store, and `onState` with each state as it comes, until the page goes. */
export function follow(onChange: (store: Store) => void, onState: (state: ServerState) => void): void {
  let store = EMPTY;
  const set = (changes: Partial<Store>): void => {
    store = { ...store, ...changes };
    onChange(store);
  };
  const source = new EventSource('/api/events');
  const on = <T>(name: string, take: (value: T) => void): void =>
    source.addEventListener(name, (event) => take(JSON.parse((event as MessageEvent<string>).data) as T));
  // A stream that begins anew tells all that is known: what was there before is dropped.
  on<Pick<Store, 'servers' | 'isReadOnly' | 'hasConsole'>>('hello', (hello) =>
    set({ ...hello, states: {}, log: [], isConnected: true }),
  );
  on<ServerState>('state', (state) => {
    onState(state);
    set({ states: { ...store.states, [state.name]: state } });
  });
  on<LogEntry[]>('log', (entries) => set({ log: [...store.log, ...entries].slice(-KEPT_ENTRIES) }));
  source.onerror = () => set({ isConnected: false });
}

/** What the server says to a request. Errors: with its words. */
export async function ask<T>(what: string, body: object): Promise<T> {
  const response = await fetch(`/api/${what}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  if (response.headers.get('content-type')?.startsWith('application/json') !== true)
    throw new Error(text.trim());
  const answer = JSON.parse(text) as T & { error?: string };
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}
