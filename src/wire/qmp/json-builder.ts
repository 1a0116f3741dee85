import { BlockError } from '../../base/error.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import type { JsonToken } from './json-lexer.js';
import { BadStringLiteral, readStringLiteral } from './json-string.js';

const MAX_UINT64 = 2n ** 64n - 1n;
const MIN_INT64 = -(2n ** 63n);

export function syntaxError(message: string): BlockError {
  return new BlockError('invalid', `JSON parse error, ${message}`);
}

/** What may come next in an object or list that is open. */
type Expected = 'first' | 'key' | 'colon' | 'value' | 'separator';

interface OpenObject {
  readonly into: JsonObject;
  key: string;
  expected: Expected;
}

interface OpenList {
  readonly into: JsonValue[];
  expected: Expected;
}

type Open = OpenObject | OpenList;

/**
 * One value out of its tokens, built as they come, so that no message costs more at its end than it did on the way.
 * The first error is kept and what follows it is passed over: a message is told of once, when it is complete.
 */
export class JsonBuilder {
  #open: Open[] = [];
  #value: JsonValue | undefined;
  #error: BlockError | undefined;

  take(token: JsonToken): void {
    if (this.#error !== undefined || this.#value !== undefined) return;
    try {
      this.#add(token);
    } catch (error) {
      if (error instanceof BadStringLiteral) this.#error = syntaxError(error.message);
      else if (error instanceof BlockError) this.#error = error;
      else throw error;
      this.#open = [];
    }
  }

  /** The value, or the first error, thrown; the builder is empty afterwards. */
  finish(): JsonValue {
    const value = this.#value;
    const error = this.#error;
    this.reset();
    if (error) throw error;
    if (value === undefined) throw syntaxError('premature EOI');
    return value;
  }

  reset(): void {
    this.#open = [];
    this.#value = undefined;
    this.#error = undefined;
  }

  #add(token: JsonToken): void {
    const top = this.#open.at(-1);
    if (top?.expected === 'colon') {
      if (token.text !== ':') throw syntaxError('missing : in object pair');
      top.expected = 'value';
    } else if (top?.expected === 'separator') this.#separate(top, token);
    else if (top?.expected === 'first' && token.kind === 'punctuation' && token.text === endOf(top))
      this.#close(top);
    else this.#begin(token);
  }

  #separate(top: Open, { text }: JsonToken): void {
    if (text === endOf(top)) return this.#close(top);
    const isList = Array.isArray(top.into);
    if (text !== ',') throw syntaxError(`expected separator in ${isList ? 'list' : 'dict'}`);
    top.expected = isList ? 'value' : 'key';
  }

  #close(top: Open): void {
    this.#open.pop();
    this.#complete(top.into);
  }

  #begin(token: JsonToken): void {
    switch (token.kind) {
      case 'string':
        return this.#complete(readStringLiteral(token.text));
      case 'number':
        return this.#complete(toNumber(token.text));
      case 'keyword':
        if (token.text === 'true') return this.#complete(true);
        if (token.text === 'false') return this.#complete(false);
        if (token.text === 'null') return this.#complete(null);
        throw syntaxError(`invalid keyword '${token.text}'`);
      case 'punctuation':
        if (token.text === '{') this.#open.push({ into: {}, key: '', expected: 'first' });
        else if (token.text === '[') this.#open.push({ into: [], expected: 'first' });
        else throw syntaxError('expecting value');
    }
  }

  /** A value has ended: it goes to where it belongs. */
  #complete(value: JsonValue): void {
    const top = this.#open.at(-1);
    if (!top) this.#value = value;
    else if (!('key' in top)) {
      top.into.push(value);
      top.expected = 'separator';
    } else if (top.expected !== 'value') {
      if (typeof value !== 'string') throw syntaxError('key is not a string in object');
      top.key = value;
      top.expected = 'colon';
    } else {
      if (Object.hasOwn(top.into, top.key)) throw syntaxError('duplicate key');
      Object.defineProperty(top.into, top.key, {
        value,
        enumerable: true,
        writable: true,
        configurable: true,
      });
      top.expected = 'separator';
    }
  }
}

function endOf({ into }: Open): string {
  return Array.isArray(into) ? ']' : '}';
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
