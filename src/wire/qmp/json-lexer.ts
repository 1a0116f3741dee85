/** A word of JSON. `text` holds one character a byte; strings keep their quotes and escapes. */
export interface JsonToken {
  readonly kind: 'punctuation' | 'string' | 'number' | 'keyword';
  readonly text: string;
}

type State =
  | 'start'
  | 'string'
  | 'escape'
  | 'minus'
  | 'zero'
  | 'digits'
  | 'point'
  | 'fraction'
  | 'e'
  | 'exponent-sign'
  | 'exponent'
  | 'keyword'
  /** After an error: everything but brackets, separators and line ends is skipped. */
  | 'recovery';

/** 'before': the token ended before this byte; 'after': it ends with it. */
type Step = State | 'before' | 'after' | 'error';

const PUNCTUATION: { readonly [code: number]: JsonToken } = Object.fromEntries(
  [...'{}[]:,'].map((text) => [text.charCodeAt(0), { kind: 'punctuation', text }]),
);

const LINE_FEED = 0x0a;
const CARRIAGE_RETURN = 0x0d;
const DOUBLE_QUOTE = 0x22;
const SINGLE_QUOTE = 0x27;
const BACKSLASH = 0x5c;
const PLUS = 0x2b;
const MINUS = 0x2d;
const POINT = 0x2e;
const ZERO = 0x30;
const LARGEST_IN_STRING = 0xfd;

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39;
const isLetter = (byte: number): boolean => byte >= 0x61 && byte <= 0x7a;
const isE = (byte: number): boolean => byte === 0x65 || byte === 0x45;
const isSpace = (byte: number): boolean =>
  byte === 0x20 || byte === 0x09 || byte === LINE_FEED || byte === CARRIAGE_RETURN;
const mayBeInString = (byte: number): boolean => byte >= 0x20 && byte <= LARGEST_IN_STRING;

export interface JsonTokenHandler {
  onToken(token: JsonToken): void;
  /** Bytes that begin no token, up to the one that made that certain. */
  onStray(text: string): void;
  /** A token grew beyond the limit. */
  onOversize(): void;
}

/** Bytes to tokens, in pieces of any size and in time linear in them. */
export class JsonLexer {
  readonly #handler: JsonTokenHandler;
  readonly #maxTokenBytes: number;
  #state: State = 'start';
  #quote = 0;
  #pieces: string[] = [];
  #pieceBytes = 0;

  constructor(handler: JsonTokenHandler, maxTokenBytes: number) {
    this.#handler = handler;
    this.#maxTokenBytes = maxTokenBytes;
  }

  push(chunk: Uint8Array): void {
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    const slice = (start: number, end: number): string => bytes.toString('latin1', start, end);
    let tokenStart = 0;
    let at = 0;
    while (at < bytes.length) {
      if (this.#state === 'string') {
        at = this.#skipPlain(bytes, at);
        if (at === bytes.length) break;
      }
      const byte = bytes[at] ?? 0;
      if (this.#state === 'start' || this.#state === 'recovery') tokenStart = at;
      const step = this.#next(byte);
      switch (step) {
        case 'before':
          this.#emit(slice(tokenStart, at));
          // The byte is looked at again: it begins something of its own.
          continue;
        case 'after':
          at++;
          this.#emit(slice(tokenStart, at));
          break;
        case 'error':
          at++;
          this.#stray(slice(tokenStart, at));
          break;
        default:
          at++;
          this.#state = step;
      }
    }
    if (this.#state !== 'start' && this.#state !== 'recovery') this.#keep(bytes, tokenStart);
  }

  /** Bytes of a token whose end has not come. */
  get unfinishedBytes(): number {
    return this.#pieceBytes;
  }

  /** Passes over the rest of a token, and what follows, as after an error. */
  drop(): void {
    this.#takePieces('');
    this.#state = 'recovery';
  }

  /** The input ends here: an unfinished token is complete or stray. */
  end(): void {
    switch (this.#state) {
      case 'start':
      case 'recovery':
        break;
      case 'zero':
      case 'digits':
      case 'fraction':
      case 'exponent':
      case 'keyword':
        this.#emit('');
        break;
      default:
        this.#stray('');
    }
    this.#state = 'start';
  }

  #skipPlain(bytes: Buffer, from: number): number {
    let at = from;
    for (; at < bytes.length; at++) {
      const byte = bytes[at] ?? 0;
      if (byte === this.#quote || byte === BACKSLASH || !mayBeInString(byte)) break;
    }
    return at;
  }

  /** What is there of an unfinished token waits for the next chunk. */
  #keep(bytes: Buffer, tokenStart: number): void {
    this.#pieces.push(bytes.toString('latin1', tokenStart));
    this.#pieceBytes += bytes.length - tokenStart;
    if (this.#pieceBytes <= this.#maxTokenBytes) return;
    this.drop();
    this.#handler.onOversize();
  }

  #takePieces(last: string): string {
    const text = this.#pieces.length === 0 ? last : this.#pieces.join('') + last;
    this.#pieces = [];
    this.#pieceBytes = 0;
    return text;
  }

  #emit(last: string): void {
    const text = this.#takePieces(last);
    const state = this.#state;
    this.#state = 'start';
    if (state === 'start' || state === 'recovery') {
      const token = PUNCTUATION[text.charCodeAt(0)];
      if (token) this.#handler.onToken(token);
      return;
    }
    const kind = state === 'string' ? 'string' : state === 'keyword' ? 'keyword' : 'number';
    this.#handler.onToken({ kind, text });
  }

  #stray(last: string): void {
    const text = this.#takePieces(last);
    this.#state = 'recovery';
    this.#handler.onStray(text);
  }

  #next(byte: number): Step {
    switch (this.#state) {
      case 'start':
        return this.#first(byte);
      case 'recovery':
        if (byte in PUNCTUATION) return 'after';
        if (byte === LINE_FEED || byte === CARRIAGE_RETURN) return 'start';
        return mayBeInString(byte) || byte === 0x09 ? 'recovery' : 'error';
      case 'string':
        if (byte === this.#quote) return 'after';
        if (byte === BACKSLASH) return 'escape';
        return mayBeInString(byte) ? 'string' : 'error';
      case 'escape':
        return mayBeInString(byte) ? 'string' : 'error';
      case 'keyword':
        return isLetter(byte) ? 'keyword' : 'before';
      default:
        return nextInNumber(this.#state, byte);
    }
  }

  #first(byte: number): Step {
    if (isSpace(byte)) return 'start';
    if (byte in PUNCTUATION) return 'after';
    if (byte === DOUBLE_QUOTE || byte === SINGLE_QUOTE) {
      this.#quote = byte;
      return 'string';
    }
    if (byte === MINUS) return 'minus';
    if (byte === ZERO) return 'zero';
    if (isDigit(byte)) return 'digits';
    return isLetter(byte) ? 'keyword' : 'error';
  }
}

type NumberState = Exclude<State, 'start' | 'string' | 'escape' | 'keyword' | 'recovery'>;

function nextInNumber(state: NumberState, byte: number): Step {
  switch (state) {
    case 'minus':
      if (byte === ZERO) return 'zero';
      return isDigit(byte) ? 'digits' : 'error';
    case 'zero':
    case 'digits':
      if (isDigit(byte)) return state === 'zero' ? 'error' : 'digits';
      if (byte === POINT) return 'point';
      // QEMU knows no exponent right behind a zero.
      return isE(byte) && state === 'digits' ? 'e' : 'before';
    case 'point':
      return isDigit(byte) ? 'fraction' : 'error';
    case 'fraction':
      if (isDigit(byte)) return 'fraction';
      return isE(byte) ? 'e' : 'before';
    case 'e':
      if (byte === PLUS || byte === MINUS) return 'exponent-sign';
      return isDigit(byte) ? 'exponent' : 'error';
    case 'exponent-sign':
      return isDigit(byte) ? 'exponent' : 'error';
    case 'exponent':
      return isDigit(byte) ? 'exponent' : 'before';
  }
}
