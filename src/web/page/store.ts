import type { LogEntry, ServerState } from '../messages.js';

/** What the page knows; everything comes by one stream of events. */
export interface Store {
  readonly servers: readonly string[];
  readonly isReadOnly: boolean;
  readonly hasConsole: boolean;
  readonly states: Readonly<Record<string, ServerState>>;
  readonly log: readonly LogEntry[];
  readonly isConnected: boolean;
  /** Why livedisk web does not let the page in; empty where it just does not answer. */
  readonly refusal: string;
}

export const EMPTY: Store = {
  servers: [],
  isReadOnly: true,
  hasConsole: false,
  states: {},
  log: [],
  isConnected: false,
  refusal: '',
};

const KEPT_ENTRIES = 2000;
/** A browser comes again by itself where nobody answers, and not where it was turned away. */
const COME_AGAIN_MS = 2000;

/** Calls `onChange` with each new store, and `onState` with each state as it comes, until the page goes. */
export function follow(onChange: (store: Store) => void, onState: (state: ServerState) => void): void {
  let store = EMPTY;
  const set = (changes: Partial<Store>): void => {
    store = { ...store, ...changes };
    onChange(store);
  };
  const open = (): void => listen(set, () => store, onState, open);
  open();
}

function listen(
  set: (changes: Partial<Store>) => void,
  now: () => Store,
  onState: (state: ServerState) => void,
  open: () => void,
): void {
  const source = new EventSource('/api/events');
  const on = <T>(name: string, take: (value: T) => void): void =>
    source.addEventListener(name, (event) => take(JSON.parse((event as MessageEvent<string>).data) as T));
  // A stream that begins anew tells all that is known: what was there before is dropped.
  on<Pick<Store, 'servers' | 'isReadOnly' | 'hasConsole'>>('hello', (hello) =>
    set({ ...hello, states: {}, log: [], isConnected: true, refusal: '' }),
  );
  on<ServerState>('state', (state) => {
    onState(state);
    set({ states: { ...now().states, [state.name]: state } });
  });
  on('aside', () => {
    source.close();
    set({ isConnected: false, refusal: ASIDE });
    whenLookedAt(open);
  });
  on<LogEntry[]>('log', (entries) => set({ log: [...now().log, ...entries].slice(-KEPT_ENTRIES) }));
  source.onerror = () => {
    set({ isConnected: false });
    if (source.readyState !== EventSource.CLOSED) return;
    void whyNot().then((refusal) => set({ refusal }));
    setTimeout(open, COME_AGAIN_MS);
  };
}

/** Browsers have few connections to a server, and would wait for one for ever. */
const ASIDE =
  'this browser has the page in too many tabs; this one goes on when you come back to it, click or press a key';

/** Somebody comes to this tab. */
function whenLookedAt(then: () => void): void {
  const signs = ['visibilitychange', 'focus', 'pointerdown', 'keydown'];
  const look = (): void => {
    if (document.visibilityState === 'hidden') return;
    for (const sign of signs) removeEventListener(sign, look, true);
    then();
  };
  for (const sign of signs) addEventListener(sign, look, true);
}

/** What livedisk web says to who may not come in. */
async function whyNot(): Promise<string> {
  try {
    const response = await fetch('/');
    return response.ok ? '' : (await response.text()).trim();
  } catch {
    return '';
  }
}

const LOST = 'livedisk web does not answer: it has ended, or cannot be reached';
const LOST_AMID = `${LOST}. What it was asked may have been done, or a part of it: look once it is back`;

/** What the server says to a request. Errors: with its words. */
export function ask<T>(what: string, body: object): Promise<T> {
  return post(what, body, LOST);
}

/** The same of what changes something. */
export function askToChange<T>(what: string, body: object): Promise<T> {
  return post(what, body, LOST_AMID);
}

async function post<T>(what: string, body: object, lost: string): Promise<T> {
  const { response, text } = await exchange(what, body).catch((cause: unknown) => {
    throw new Error(lost, { cause });
  });
  if (response.headers.get('content-type')?.startsWith('application/json') !== true)
    throw new Error(text.trim());
  const answer = JSON.parse(text) as T & { error?: string };
  if (!response.ok) throw new Error(answer.error ?? response.statusText);
  return answer;
}

async function exchange(what: string, body: object): Promise<{ response: Response; text: string }> {
  const response = await fetch(`/api/${what}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  return { response, text: await response.text() };
}
