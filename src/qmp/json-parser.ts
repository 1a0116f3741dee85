import { BlockError } from '../base/error.js';
import { MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_TOKENS } from '../base/limits.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import { JsonLexer, type JsonToken } from './json-lexer.js';
import { BadStringLiteral, readStringLiteral } from './json-string.js';

const MAX_UINT64 = 2n ** 64n - 1n;
const MIN_INT64 = -(2n ** 63n);
/** Most of a stray text that an error repeats. */
const MAX_SHOWN_CHARS = 1000;

function syntax(message: string): BlockError {
  return new BlockError('invalid', `JSON parse error, ${message}`);
}

function tooMuch(what: string): BlockError {
  return new BlockError('limit', `JSON ${what} limit exceeded`);
}

export interface JsonLimits {
  bytes: number;
  tokens: number;
  depth: number;
}

const LIMITS: JsonLimits = { bytes: MAX_JSON_BYTES, tokens: MAX_JSON_TOKENS, depth: MAX_JSON_DEPTH };

/**
 * Values out of a stream of bytes, as QEMU reads QMP: JSON with single-quoted strings allowed, values need no
 * separator, a value is complete with its last bracket. An error drops what was read of a value; after stray bytes
 * reading goes on with the next bracket, separator or line.
 *
 * Errors: kind 'invalid' for what is no JSON, 'limit' for too large a value; messages are QEMU's.
 */
export class JsonStream {
  readonly #onValue: (value: JsonValue) => void;
  readonly #onError: (error: BlockError) => void;
  readonly #limits: JsonLimits;
  readonly #lexer: JsonLexer;
  #tokens: JsonToken[] = [];
  #bytes = 0;
  #openBraces = 0;
  #openBrackets = 0;

  constructor(
    onValue: (value: JsonValue) => void,
    onError: (error: BlockError) => void,
    limits: JsonLimits = LIMITS,
  ) {
    this.#onValue = onValue;
    this.#onError = onError;
    this.#limits = limits;
    this.#lexer = new JsonLexer(
      {
        onToken: (token) => this.#take(token),
        onStray: (text) => this.#fail(syntax(`stray '${shown(text)}'`)),
        onOversize: () => this.#fail(tooMuch('token size')),
      },
      limits.bytes,
    );
  }

  /** Takes bytes as they come; they may be reused afterwards. */
  push(chunk: Uint8Array): void {
    this.#lexer.push(chunk);
  }

  /** The stream has ended: what is pending is complete or wrong. */
  end(): void {
    this.#lexer.end();
    if (this.#tokens.length > 0) this.#fail(syntax('premature EOI'));
  }

  #take(token: JsonToken): void {
    this.#tokens.push(token);
    this.#bytes += token.text.length;
    if (token.kind === 'punctuation') this.#count(token.text);
    const { depth, bytes, tokens } = this.#limits;
    if (this.#openBraces + this.#openBrackets > depth) return this.#fail(tooMuch('nesting depth'));
    if (this.#bytes > bytes) return this.#fail(tooMuch('token size'));
    if (this.#tokens.length > tokens) return this.#fail(tooMuch('token count'));
    const isOpen = this.#openBraces > 0 || this.#openBrackets > 0;
    if (!isOpen || this.#openBraces < 0 || this.#openBrackets < 0) this.#finish();
  }

  #count(text: string): void {
    if (text === '{') this.#openBraces++;
    else if (text === '}') this.#openBraces--;
    else if (text === '[') this.#openBrackets++;
    else if (text === ']') this.#openBrackets--;
  }

  #finish(): void {
    const tokens = this.#reset();
    let value: JsonValue;
    try {
      value = new TokenParser(tokens).parse();
    } catch (error) {
      if (error instanceof BadStringLiteral) return this.#onError(syntax(error.message));
      if (!(error instanceof BlockError)) throw error;
      return this.#onError(error);
    }
    this.#onValue(value);
  }

  #fail(error: BlockError): void {
    this.#reset();
    this.#onError(error);
  }

  #reset(): JsonToken[] {
    const tokens = this.#tokens;
    this.#tokens = [];
    this.#bytes = 0;
    this.#openBraces = 0;
    this.#openBrackets = 0;
    return tokens;
  }
}

/** The one JSON value of a text, with single-quoted strings allowed. Errors: as JsonStream's. */
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

/** Stray bytes as characters, up to a NUL as QEMU shows them. */
function shown(bytes: string): string {
  const nul = bytes.indexOf('\0');
  const text = bytes.slice(0, Math.min(nul < 0 ? bytes.length : nul, MAX_SHOWN_CHARS));
  return Buffer.from(text, 'latin1').toString('utf8');
}

/** Integers stay exact (bigint beyond 2^53, uint64 at most); anything else is a double, kept apart by a fraction. */
function toNumber(text: string): number | bigint {
  if (/^-?\d+$/.test(text)) {
    const number = Number(text);
    if (Number.isSafeInteger(number)) return number === 0 ? 0 : number;
    // Digits without end would make an integer of any size; 20 of them exceed 64 bits.
    const exact = text.length <= 20 ? BigInt(text) : undefined;
    const fits = exact !== undefined && exact <= MAX_UINT64 && exact >= MIN_INT64;
    return fits ? exact : asDouble(number);
  }
  // 1e3 and 5.0 are no integers for QMP, though they are for JavaScript.
  const value = Number(text);
  return Number.isInteger(value) ? asDouble(value) : value;
}

function asDouble(value: number): number {
  return new Double(value) as unknown as number;
}

/** A number that was written with a fraction or an exponent but has an integral value. */
export class Double extends Number {
  toJSON(): number {
    return this.valueOf();
  }
}

/** The tokens of one value, down to the bracket that closes it. */
class TokenParser {
  readonly #tokens: readonly JsonToken[];
  #at = 0;

  constructor(tokens: readonly JsonToken[]) {
    this.#tokens = tokens;
  }

  parse(): JsonValue {
    return this.#value();
  }

  #next(): JsonToken {
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
        return readStringLiteral(token.text);
      case 'number':
        return toNumber(token.text);
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
      const key = this.#value();
      if (typeof key !== 'string') throw syntax('key is not a string in object');
      const colon = this.#next();
      if (colon.text !== ':') throw syntax('missing : in object pair');
      const value = this.#value();
      if (Object.hasOwn(out, key)) throw syntax('duplicate key');
      Object.defineProperty(out, key, { value, enumerable: true, writable: true, configurable: true });
      const next = this.#next();
      if (next.text === '}') return out;
      if (next.text !== ',') throw syntax('expected separator in dict');
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
      if (next.text === ']') return out;
      if (next.text !== ',') throw syntax('expected separator in list');
    }
  }
}
