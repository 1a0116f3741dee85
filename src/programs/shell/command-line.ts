import { BlockError } from '../../base/error.js';
import { parseJson } from '../../wire/qmp/json-parser.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../schema/types.js';
import { jsonOfPython } from './python-literal.js';

/** What the schema says that a value may be: decides how a word is read. */
export type ValueKind = 'string' | 'number' | 'boolean';

/** The kinds of the argument at a dotted path of a command; undefined when nothing is known of it. */
export type KindsOf = (command: string, path: readonly string[]) => ReadonlySet<ValueKind> | undefined;

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

/**
 * A line of the shell as a QMP request: raw JSON, or `command key=value key.nested=value key={json}`. Values are
 * quoted with ' or " where they have spaces. Errors: kind invalid.
 */
export function parseCommandLine(line: string, kindsOf: KindsOf = () => undefined): JsonObject {
  const text = line.trim();
  return parseWords(text.startsWith('{') ? [text] : splitWords(text), kindsOf);
}

/** The same of words that are apart already, as a program is given them. */
export function parseWords(
  [command = '', ...words]: readonly string[],
  kindsOf: KindsOf = () => undefined,
): JsonObject {
  if (command.startsWith('{')) return parseRaw([command, ...words].join(' '));
  if (command.includes('=')) throw invalid(`'${command}' is no command: its name comes first`);
  const args: JsonObject = {};
  for (const word of words) {
    const equals = word.indexOf('=');
    if (equals <= 0) throw invalid(`Expected a key=value pair, got '${word}'`);
    const path = word.slice(0, equals).split('.');
    put(args, path, readValue(word.slice(equals + 1), kindsOf(command, path)));
  }
  return words.length === 0 ? { execute: command } : { execute: command, arguments: args };
}

function parseRaw(text: string): JsonObject {
  const value = parseJson(jsonOfPython(text));
  if (!isJsonObject(value)) throw invalid('not a JSON object');
  return value;
}

/** At spaces that are in no quotes and no brackets. Quotes around or within a plain word stay for readValue. */
export function splitWords(text: string): string[] {
  const words: string[] = [];
  let word = '';
  let quote = '';
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const char = text[at] ?? '';
    if (quote === '' && depth === 0 && /\s/.test(char)) {
      if (word !== '') words.push(word);
      word = '';
      continue;
    }
    word += char;
    if (quote !== '') {
      if (char === '\\') word += text[++at] ?? '';
      else if (char === quote) quote = '';
    } else if (char === '"' || char === "'") quote = char;
    else if (char === '{' || char === '[') depth++;
    else if ((char === '}' || char === ']') && depth > 0) depth--;
  }
  if (quote !== '') throw invalid(`No closing ${quote}`);
  if (depth > 0) throw invalid('No closing bracket');
  return word === '' ? words : [...words, word];
}

function readValue(text: string, kinds: ReadonlySet<ValueKind> | undefined): JsonValue {
  if (/^[{[]/.test(text)) return parseJson(jsonOfPython(text));
  if (/^(["']).*\1$/s.test(text)) return parseJson(text);
  const allows = (kind: ValueKind): boolean => kinds === undefined || kinds.has(kind);
  if (allows('boolean') && (kinds ? /^(true|on|yes)$/i : /^true$/i).test(text)) return true;
  if (allows('boolean') && (kinds ? /^(false|off|no)$/i : /^false$/i).test(text)) return false;
  if (allows('number') && /^-?(0|[1-9]\d*)(\.\d+)?$/.test(text)) return parseJson(text);
  if (kinds?.has('string') !== true && text === 'null') return null;
  return text;
}

function put(args: JsonObject, path: readonly string[], value: JsonValue): void {
  const last = path.at(-1) ?? '';
  let at = args;
  for (const [i, part] of path.slice(0, -1).entries()) {
    if (!Object.hasOwn(at, part)) define(at, part, {});
    const next = at[part];
    if (!isJsonObject(next))
      throw invalid(`Cannot use '${path.slice(0, i + 1).join('.')}' as both object and non-object key`);
    at = next;
  }
  if (Object.hasOwn(at, last)) throw invalid(`Cannot set '${path.join('.')}' multiple times`);
  define(at, last, value);
}

/** An own member whatever its name. */
function define(object: JsonObject, key: string, value: JsonValue): void {
  Object.defineProperty(object, key, { value, enumerable: true, writable: true, configurable: true });
}
