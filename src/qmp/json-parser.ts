import { BlockError } from '../base/error.js';
import { MAX_JSON_BYTES, MAX_JSON_DEPTH } from '../base/limits.js';
import type { JsonObject, JsonValue } from '../schema/types.js';

type Token =
  | { kind: 'punctuation'; text: '{' | '}' | '[' | ']' | ':' | ',' }
  | { kind: 'string'; value: string }
  | { kind: 'number'; value: number | bigint }
  | { kind: 'keyword'; text: string };

const MAX_UINT64 = 2n ** 64n - 1n;
const MIN_INT64 = -(2n ** 63n);

function syntax(message: string): BlockError {
  return new BlockError('invalid', `JSON parse error, ${message}`);
}

/**
 * Values out of a stream of bytes, as QEMU reads QMP: JSON with single-quoted strings allowed, values need no
 * separator, a value is complete with its last bracket. An error is told once and what was read so far is dropped;
 * a line feed inside a string ends the error.
 */
export class JsonStream {
  readonly #onValue: (value: JsonValue) => void;
  readonly #onError: (error: BlockError) => void;
  #tokens: Token[] = [];
  #nesting: string[] = [];
  #bytes = 0;
  #partial = '';
  #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  constructor(onValue: (value: JsonValue) => void, onError: (error: BlockError) => void) {
    this.#onValue = onValue;
    this.#onError = onError;
  }

  /** Takes bytes as they come. */
  push(chunk: Uint8Array): void {
    this.#lex(this.#partial + this.#decoder.decode(chunk, { stream: true }), false);
  }

  /** The stream has ended: what is pending is complete or wrong. */
  end(): void {
    this.#lex(this.#partial + this.#decoder.decode(), true);
    if (this.#tokens.length > 0) this.#fail(syntax('premature EOI'));
  }

  #lex(text: string, atEnd: boolean): void {
    let at = 0;
    while (at < text.length) {
      const char = text[at] ?? '';
      if (/[ \t\r\n]/.test(char)) {
        at++;
        continue;
      }
      const end = tokenEnd(text, at, atEnd);
      if (end === 'more') break;
      if (typeof end === 'object') {
        // The stray text is dropped with everything that it interrupted.
        this.#fail(syntax(`stray '${end.stray}'`));
        at += end.skip;
        continue;
      }
      this.#take(text.slice(at, end));
      at = end;
    }
    this.#partial = text.slice(at);
    this.#bytes += at;
    if (this.#partial.length + this.#bytes > MAX_JSON_BYTES) {
      this.#fail(new BlockError('limit', 'JSON token size limit exceeded'));
      this.#partial = '';
    }
    if (this.#tokens.length === 0) this.#bytes = 0;
  }

  #take(text: string): void {
    let token: Token;
    try {
      token = toToken(text);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return this.#fail(error);
    }
    this.#tokens.push(token);
    if (token.kind === 'punctuation') {
      if (token.text === '{' || token.text === '[') this.#nesting.push(token.text);
      else if (token.text === '}' || token.text === ']') this.#nesting.pop();
    }
    if (this.#nesting.length > MAX_JSON_DEPTH) {
      return this.#fail(new BlockError('limit', 'JSON nesting depth limit exceeded'));
    }
    if (this.#nesting.length === 0) this.#finish();
  }

  #finish(): void {
    const tokens = this.#tokens;
    this.#tokens = [];
    let value: JsonValue;
    try {
      value = new TokenParser(tokens).parse();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return this.#fail(error);
    }
    this.#onValue(value);
  }

  #fail(error: BlockError): void {
    this.#tokens = [];
    this.#nesting = [];
    this.#bytes = 0;
    this.#onError(error);
  }
}

/** The one JSON value of a text, with single-quoted strings allowed. Errors: kind 'invalid', in QEMU's words. */
export function parseJson(text: string): JsonValue {
  const values: JsonValue[] = [];
  const errors: BlockError[] = [];
  const stream = new JsonStream(
    (value) => void values.push(value),
    (error) => void errors.push(error),
  );
  stream.push(Buffer.from(text));
  stream.end();
  const [value, ...more] = values;
  if (value !== undefined && more.length + errors.length > 0) {
    throw new BlockError('invalid', 'Expecting at most one JSON value');
  }
  if (errors[0]) throw errors[0];
  if (value === undefined) throw new BlockError('invalid', 'Expecting a JSON value');
  return value;
}

/** Where the token at `at` ends; 'more': it is not complete yet; stray: it is none. */
function tokenEnd(
  text: string,
  at: number,
  atEnd: boolean,
): number | 'more' | { stray: string; skip: number } {
  const char = text[at] ?? '';
  if ('{}[]:,'.includes(char)) return at + 1;
  if (char === '"' || char === "'") return stringEnd(text, at, char, atEnd);
  const match = /^(-?[0-9][0-9.eE+-]*|[a-z]+)/.exec(text.slice(at, at + 400)) ?? undefined;
  if (!match) {
    if (char === '-' && at + 1 >= text.length && !atEnd) return 'more';
    return { stray: char, skip: 1 };
  }
  const end = at + match[0].length;
  return end >= text.length && !atEnd ? 'more' : end;
}

function stringEnd(
  text: string,
  at: number,
  quote: string,
  atEnd: boolean,
): number | 'more' | { stray: string; skip: number } {
  for (let i = at + 1; i < text.length; i++) {
    const char = text[i] ?? '';
    if (char === quote) return i + 1;
    if (char < ' ') return { stray: text.slice(at, i + 1), skip: i + 1 - at };
    if (char === '\\') i++;
  }
  return atEnd ? { stray: text.slice(at), skip: text.length - at } : 'more';
}

function toToken(text: string): Token {
  const char = text[0] ?? '';
  if ('{}[]:,'.includes(char)) return { kind: 'punctuation', text: char as '{' };
  if (char === '"' || char === "'") return { kind: 'string', value: unescape(text) };
  if (/[a-z]/.test(char)) return { kind: 'keyword', text };
  return { kind: 'number', value: toNumber(text) };
}

const ESCAPES: { [letter: string]: string } = {
  '"': '"',
  "'": "'",
  '\\': '\\',
  '/': '/',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
};

function unescape(literal: string): string {
  return literal.slice(1, -1).replace(/\\(u[0-9a-fA-F]{4}|[^])/g, (match, body: string) => {
    if (body.length === 5) {
      const code = parseInt(body.slice(1), 16);
      if (code === 0) throw syntax(`invalid escape sequence '\\u0000' in string`);
      return String.fromCharCode(code);
    }
    const plain = ESCAPES[body];
    if (plain === undefined) throw syntax(`invalid escape sequence '${match}' in string`);
    return plain;
  });
}

/** Integers stay exact (bigint beyond 2^53, uint64 at most); anything else is a double, kept apart by a fraction. */
function toNumber(text: string): number | bigint {
  if (/^-?(0|[1-9][0-9]*)$/.test(text)) {
    const exact = BigInt(text);
    if (exact > MAX_UINT64 || exact < MIN_INT64) return new Double(Number(text)) as unknown as number;
    const number = Number(text);
    return Number.isSafeInteger(number) ? number : exact;
  }
  if (!/^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$/.test(text)) throw syntax(`stray '${text}'`);
  const value = Number(text);
  // 1e3 and 5.0 are no integers for QMP, though they are for JavaScript.
  return Number.isInteger(value) ? (new Double(value) as unknown as number) : value;
}

/** A number that was written with a fraction or an exponent but has an integral value. */
export class Double extends Number {
  toJSON(): number {
    return this.valueOf();
  }
}

class TokenParser {
  readonly #tokens: Token[];
  #at = 0;

  constructor(tokens: Token[]) {
    this.#tokens = tokens;
  }

  parse(): JsonValue {
    return this.#value();
  }

  #next(): Token {
    const token = this.#tokens[this.#at++];
    if (!token) throw syntax('premature EOI');
    return token;
  }

  #peekIs(text: string): boolean {
    const token = this.#tokens[this.#at];
    return token?.kind === 'punctuation' && token.text === text;
  }

  #value(): JsonValue {
    const token = this.#next();
    switch (token.kind) {
      case 'string':
      case 'number':
        return token.value;
      case 'keyword':
        if (token.text === 'true') return true;
        if (token.text === 'false') return false;
        if (token.text === 'null') return null;
        throw syntax(`invalid keyword '${token.text}'`);
      case 'punctuation':
        if (token.text === '{') return this.#object();
        if (token.text === '[') return this.#array();
        throw syntax('expecting value');
    }
  }

  #object(): JsonObject {
    const out: JsonObject = {};
    if (this.#peekIs('}')) {
      this.#at++;
      return out;
    }
    for (;;) {
      const key = this.#next();
      if (key.kind !== 'string')
        throw syntax(
          key.kind === 'punctuation'
            ? 'expecting value'
            : key.kind === 'keyword'
              ? `invalid keyword '${key.text}'`
              : 'key is not a string in object',
        );
      const colon = this.#next();
      if (colon.kind !== 'punctuation' || colon.text !== ':') throw syntax('missing : in object pair');
      const value = this.#value();
      if (Object.hasOwn(out, key.value)) throw syntax('duplicate key');
      Object.defineProperty(out, key.value, { value, enumerable: true, writable: true, configurable: true });
      const next = this.#next();
      if (next.kind === 'punctuation' && next.text === '}') return out;
      if (next.kind !== 'punctuation' || next.text !== ',') throw syntax('expected separator in dict');
    }
  }

  #array(): JsonValue[] {
    const out: JsonValue[] = [];
    if (this.#peekIs(']')) {
      this.#at++;
      return out;
    }
    for (;;) {
      out.push(this.#value());
      const next = this.#next();
      if (next.kind === 'punctuation' && next.text === ']') return out;
      if (next.kind !== 'punctuation' || next.text !== ',') throw syntax('expected separator in list');
    }
  }
}
