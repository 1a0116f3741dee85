import { PassThrough } from 'node:stream';
import { StringDecoder } from 'node:string_decoder';

const SEARCH = '\x12';
const CANCEL = /^[\x03\x07]$/;
const ERASE = /^[\b\x7f]$/;
const CLEAR_LINE = '\x15\x0b';
const REDRAW = '\r\x1b[K';

export interface SearchUser {
  /** Lines to search, the newest first. */
  lines(): readonly string[];
  show(text: string): void;
  /** Shows the line that is being edited again. */
  restore(): void;
}

/**
 * A terminal's keys on their way to readline, which has no Ctrl-R. That key begins a search: what is typed then is looked
 * for in older lines, again Ctrl-R goes on to the one before, Ctrl-G and Ctrl-C give it up, and any other key takes the
 * line found as if it had been typed, and has its own effect.
 */
export class ReverseSearch extends PassThrough {
  readonly #user: SearchUser;
  readonly #terminal: NodeJS.ReadableStream & { setRawMode?: (isRaw: boolean) => unknown };
  readonly #decoder = new StringDecoder('utf8');
  #pattern: string | undefined;
  #at = 0;
  /** Readline asks for it. */
  readonly isTTY = true;

  constructor(
    terminal: NodeJS.ReadableStream & { setRawMode?: (isRaw: boolean) => unknown },
    user: SearchUser,
  ) {
    super();
    this.#terminal = terminal;
    this.#user = user;
    terminal.on('data', this.#onData);
    terminal.once('end', () => this.end());
  }

  /** Takes no more keys. */
  close(): void {
    this.#terminal.off('data', this.#onData);
    this.#terminal.pause();
  }

  readonly #onData = (chunk: Buffer): void => this.#take(this.#decoder.write(chunk));

  /** Readline's way to tell the terminal not to show what is typed. */
  setRawMode(isRaw: boolean): this {
    this.#terminal.setRawMode?.(isRaw);
    return this;
  }

  #take(text: string): void {
    for (let rest = text; rest !== '';) {
      if (this.#pattern === undefined) {
        const at = rest.indexOf(SEARCH);
        if (at !== 0) this.push(at < 0 ? rest : rest.slice(0, at));
        if (at < 0) return;
        this.#begin();
        rest = rest.slice(at + 1);
      } else {
        const [char = ''] = rest;
        // An escape sequence is one key.
        const key = char === '\x1b' ? rest : char;
        this.#press(this.#pattern, key);
        rest = rest.slice(key.length);
      }
    }
  }

  #begin(): void {
    this.#pattern = '';
    this.#at = -1;
    this.#show('');
  }

  #press(pattern: string, key: string): void {
    if (key === SEARCH) this.#find(pattern, this.#at + 1);
    else if (CANCEL.test(key)) this.#leave();
    else if (ERASE.test(key)) this.#find(pattern.slice(0, -1), 0);
    else if (key >= ' ') this.#find(pattern + key, Math.max(this.#at, 0));
    else {
      const line = this.#user.lines()[this.#at];
      this.#leave();
      this.push((line === undefined ? '' : CLEAR_LINE + line) + key);
    }
  }

  /** The first line from `from` on; where there is none the one that was found stays. */
  #find(pattern: string, from: number): void {
    this.#pattern = pattern;
    const at = this.#user.lines().findIndex((line, i) => i >= from && line.includes(pattern));
    if (pattern === '') this.#at = -1;
    else if (at >= 0) this.#at = at;
    this.#show(pattern === '' || at >= 0 ? '' : 'failed ');
  }

  #show(failed: string): void {
    const line = this.#user.lines()[this.#at] ?? '';
    this.#user.show(`${REDRAW}(${failed}reverse-i-search)'${this.#pattern ?? ''}': ${line}`);
  }

  #leave(): void {
    this.#pattern = undefined;
    this.#user.show(REDRAW);
    this.#user.restore();
  }
}
