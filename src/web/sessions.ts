import type { IncomingMessage } from 'node:http';
import type { HostClock, HostRandom } from '../host/host.js';
import { isSame } from './secrets.js';

const SECRET_BYTES = 32;
/** Wrong tokens in a minute, of all together, that get an answer: guessing 256 bits is hopeless, and is told as that. */
const MOST_TRIES = 10;
const TRIES_MS = 60_000;

export interface SessionOptions {
  /** Browsers keep cookies by machine and not by port: servers of one machine need names of their own. */
  readonly cookieName: () => string;
  /** Only over TLS. */
  readonly isSecure: boolean;
}

/** Who may come in: one token, good once, gives a session that lasts as long as the server. */
export class Sessions {
  readonly #random: HostRandom;
  readonly #clock: HostClock;
  #token: string;
  readonly #sessions: string[] = [];
  #tries: number[] = [];

  readonly #options: SessionOptions;

  constructor(random: HostRandom, clock: HostClock, options: SessionOptions) {
    this.#random = random;
    this.#clock = clock;
    this.#options = options;
    this.#token = this.#secret();
  }

  /** Good for one login. */
  get token(): string {
    return this.#token;
  }

  /** A Set-Cookie header for who shows the token; it is spent then. 'wait' when too many wrong ones were tried. */
  login(token: string): { cookie: string } | 'wrong' | 'wait' {
    // Others who guess do not keep out who has it.
    if (this.#token === '' || !isSame(token, this.#token)) return this.#refuse();
    this.#token = '';
    this.#tries = [];
    const session = this.#secret();
    this.#sessions.push(session);
    const { cookieName, isSecure } = this.#options;
    const secure = isSecure ? '; Secure' : '';
    return { cookie: `${cookieName()}=${session}; HttpOnly; SameSite=Strict; Path=/${secure}` };
  }

  #refuse(): 'wrong' | 'wait' {
    const now = this.#clock.nowMs();
    this.#tries = this.#tries.filter((ms) => now - ms < TRIES_MS);
    if (this.#tries.length >= MOST_TRIES) return 'wait';
    this.#tries.push(now);
    return 'wrong';
  }

  /** Whether a request is of one who came in; and which one. */
  find({ headers }: IncomingMessage): string | undefined {
    // Another server of this machine may have set one of that name for a longer path, which comes first.
    const cookies = new RegExp(`(?:^|;\\s*)${this.#options.cookieName()}=([\\w-]+)`, 'g');
    const given = [...(headers.cookie ?? '').matchAll(cookies)].map(([, one = '']) => one);
    return this.#sessions.find((session) => given.some((one) => isSame(one, session)));
  }

  #secret(): string {
    return this.#random.bytes(SECRET_BYTES).toString('base64url');
  }
}
