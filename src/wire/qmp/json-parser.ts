import { BlockError } from '../../base/error.js';
import { MAX_JSON_BYTES, MAX_JSON_DEPTH, MAX_JSON_TOKENS } from '../../base/limits.js';
import type { JsonValue } from '../../schema/types.js';
import { JsonBuilder, syntaxError } from './json-builder.js';
import { JsonLexer, type JsonToken } from './json-lexer.js';

export { Double } from './json-builder.js';

/** Most of a stray text that an error repeats. */
const MAX_SHOWN_CHARS = 1000;

/** What a token takes in memory beside its text. */
const TOKEN_MEMORY_BYTES = 64;

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
  readonly #builder = new JsonBuilder();
  /** Of the value that is being read. */
  #tokens = 0;
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
        onStray: (text) => this.#fail(syntaxError(`stray '${shown(text)}'`)),
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
    if (this.#tokens > 0) this.#fail(syntaxError('premature EOI'));
  }

  /** About the memory that a value takes whose end has not come. */
  get unfinishedBytes(): number {
    return this.#bytes + TOKEN_MEMORY_BYTES * this.#tokens + this.#lexer.unfinishedBytes;
  }

  /** Drops what was read of a value, as too large. */
  refuse(): void {
    this.#lexer.drop();
    this.#fail(tooMuch('token size'));
  }

  #take(token: JsonToken): void {
    this.#tokens++;
    this.#bytes += token.text.length;
    if (token.kind === 'punctuation') this.#count(token.text);
    const { depth, bytes, tokens } = this.#limits;
    if (this.#openBraces + this.#openBrackets > depth) return this.#fail(tooMuch('nesting depth'));
    if (this.#bytes > bytes) return this.#fail(tooMuch('token size'));
    if (this.#tokens > tokens) return this.#fail(tooMuch('token count'));
    this.#builder.take(token);
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
    let value: JsonValue;
    try {
      value = this.#builder.finish();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      return this.#fail(error);
    }
    this.#reset();
    this.#onValue(value);
  }

  #fail(error: BlockError): void {
    this.#reset();
    this.#onError(error);
  }

  #reset(): void {
    this.#builder.reset();
    this.#tokens = 0;
    this.#bytes = 0;
    this.#openBraces = 0;
    this.#openBrackets = 0;
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
