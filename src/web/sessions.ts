import type { IncomingMessage } from 'node:http';
import type { HostClock, HostRandom } from '../host/host.js';
import { isSame } from './secrets.js';

const SECRET_BYTES = 32;
const COOKIE = 'livedisk';
/** Tokens that are tried in a minute, by all together: guessing 256 bits is hopeless, and is not to cost anything. */
const MOST_TRIES = 10;
const TRIES_MS = 60_000;

/** Who may come in: one token, good once, gives a session that lasts as long as the server. */
export class Sessions {
  readonly #random: HostRandom;
  readonly #clock: HostClock;
  #token: string;
  readonly #sessions: string[] = [];
  #tries: number[] = [];

  constructor(random: HostRandom, clock: HostClock) {
    this.#random = random;
    this.#clock = clock;
    this.#token = this.#secret();
  }

  /** Good for one login. */
  get token(): string {
    return this.#token;
  }

  /** A Set-Cookie header for who shows the token; it is spent then. 'wait' when too many were tried. */
  login(token: string): { cookie: string } | 'wrong' | 'wait' {
    const now = this.#clock.nowMs();
    this.#tries = this.#tries.filter((ms) => now - ms < TRIES_MS);
    if (this.#tries.length >= MOST_TRIES) return 'wait';
    this.#tries.push(now);
    if (this.#token === '' || !isSame(token, this.#token)) return 'wrong';
    this.#token = '';
    this.#tries = [];
    const session = this.#secret();
    this.#sessions.push(session);
    return { cookie: `${COOKIE}=${session}; HttpOnly; SameSite=Strict; Path=/` };
  }

  /** Whether a request is of one who came in; and which one. */
  find({ headers }: IncomingMessage): string | undefined {
    const [, given] = new RegExp(`(?:^|;\\s*)${COOKIE}=([\\w-]+)`).exec(headers.cookie ?? '') ?? [];
    return given === undefined ? undefined : this.#sessions.find((session) => isSame(given, session));
  }

  #secret(): string {
    return this.#random.bytes(SECRET_BYTES).toString('base64url');
  }
}
