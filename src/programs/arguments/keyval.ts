import { BlockError } from '../../base/error.js';
import { MAX_JSON_DEPTH } from '../../base/limits.js';
import { parseJson } from '../../wire/qmp/json-parser.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../schema/types.js';

/** What an option string says: strings, nested by the dots of their keys; a JSON option has values of any type. */
export type KeyvalObject = JsonObject;

/** Longest part of a dotted key, in bytes; QEMU's limit. */
const MAX_KEY_PART_BYTES = 127;

interface Branch {
  readonly members: Map<string, Branch | string>;
}

interface Parameter {
  key: string;
  value: string;
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

/** Whether an option string is JSON, whose values have JSON's types (the schema's mode 'qmp'). */
export function isJsonOption(text: string): boolean {
  return text.startsWith('{');
}

/**
 * An option string as QEMU's --blockdev, --export and the like take it: `driver=qcow2,file.driver=file,...`. Dots
 * nest, parts that are all digits make lists (`x.0.y`), ",," in a value is a comma, the last of equal keys counts.
 * Text that begins with "{" is JSON. With `implicitKey`, a first parameter without "=" is that key's value.
 *
 * All values of the dotted form are strings: give them to a schema type with mode 'keyval', a JSON option's with
 * mode 'qmp' (see isJsonOption). Errors: kind 'invalid', in QEMU's words.
 */
export function parseKeyval(text: string, implicitKey?: string): KeyvalObject {
  if (isJsonOption(text)) return parseJsonOption(text);
  const root: Branch = { members: new Map() };
  let wantsHelp = false;
  for (const parameter of parameters(text, implicitKey)) {
    if (parameter === 'help') wantsHelp = true;
    else insert(root, parameter);
  }
  if (wantsHelp) throw invalid('Help is not available for this option');
  return toValue(root, '') as KeyvalObject;
}

function parseJsonOption(text: string): KeyvalObject {
  const value = parseJson(text);
  if (!isJsonObject(value)) {
    throw invalid('Expecting a JSON object');
  }
  return value;
}

function* parameters(text: string, implicitKey: string | undefined): Generator<Parameter | 'help'> {
  let at = 0;
  while (at < text.length) {
    const isFirst = at === 0;
    const length = text.slice(at).search(/[=,]/);
    const end = length < 0 ? text.length : at + length;
    const key = text.slice(at, end);
    if (text[end] === '=') {
      const { value, next } = readValue(text, end + 1);
      yield { key, value };
      at = next;
      continue;
    }
    if (key === 'help' || key === '?') yield 'help';
    else if (isFirst && implicitKey !== undefined && key !== '') yield { key: implicitKey, value: key };
    else {
      splitKey(key);
      throw invalid(`Expected '=' after parameter '${key}'`);
    }
    at = end + 1;
  }
}

/** The value at `start`, up to a comma that is not doubled. */
function readValue(text: string, start: number): { value: string; next: number } {
  let value = '';
  for (let at = start; ;) {
    const comma = text.indexOf(',', at);
    if (comma < 0) return { value: value + text.slice(at), next: text.length };
    value += text.slice(at, comma);
    if (text[comma + 1] !== ',') return { value, next: comma + 1 };
    value += ',';
    at = comma + 2;
  }
}

/** A QAPI name (with a vendor's prefix `__vendor.example_` perhaps) or, not first, an index. */
function splitKey(key: string): string[] {
  const parts: string[] = [];
  let rest = key;
  for (;;) {
    const match =
      /^(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*/.exec(rest) ??
      (parts.length > 0 ? /^\d+/.exec(rest) : null);
    const part = match?.[0] ?? '';
    const after = rest[part.length];
    if (part === '' || (after !== undefined && after !== '.')) throw invalid(`Invalid parameter '${key}'`);
    if (part.length > MAX_KEY_PART_BYTES) {
      throw invalid(
        `${part.length === key.length ? 'Parameter' : 'Parameter fragment'} '${part}' is too long`,
      );
    }
    parts.push(part);
    // As deep as the same in JSON may be.
    if (parts.length > MAX_JSON_DEPTH) throw invalid(`Parameter '${parts[0] ?? ''}' is nested too deeply`);
    if (after === undefined) return parts;
    rest = rest.slice(part.length + 1);
  }
}

function insert(root: Branch, { key, value }: Parameter): void {
  const parts = splitKey(key);
  const last = parts.pop() ?? '';
  let branch = root;
  const path: string[] = [];
  for (const part of parts) {
    path.push(part);
    let next = branch.members.get(part);
    if (typeof next === 'string') throw inconsistent(path.join('.'));
    if (next === undefined) {
      next = { members: new Map() };
      branch.members.set(part, next);
    }
    branch = next;
  }
  if (typeof branch.members.get(last) === 'object') throw inconsistent(key);
  branch.members.set(last, value);
}

function inconsistent(path: string): BlockError {
  return invalid(`Parameters '${path}.*' used inconsistently`);
}

/** Branches whose keys are all indices become lists. */
function toValue(branch: Branch, path: string): JsonValue {
  const entries = [...branch.members].map(([key, value]): [string, JsonValue] => {
    const full = path === '' ? key : `${path}.${key}`;
    return [key, typeof value === 'string' ? value : toValue(value, full)];
  });
  const indices = entries.filter(([key]) => /^\d/.test(key)).length;
  if (indices === 0) return Object.fromEntries(entries);
  if (indices < entries.length) throw inconsistent(path);
  const byIndex = new Map(entries.map(([key, value]) => [Number(key), value]));
  const list: JsonValue[] = [];
  for (let index = 0; index < byIndex.size; index++) {
    const item = byIndex.get(index);
    if (item === undefined) throw invalid(`Parameter '${path}.${index}' missing`);
    list.push(item);
  }
  return list;
}
