import { BlockError } from '../../base/error.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';

/**
 * An option string as QEMU's command lines have it: `driver=qcow2,file.filename=a,,b`, dotted keys nested, two commas
 * for one, or a JSON object. A first part without `=` is the value of `implicitKey`. Errors: invalid, in QEMU's words.
 */
export function parseKeyval(text: string, implicitKey?: string): JsonObject {
  if (text.startsWith('{')) return parseJsonOptions(text);
  const out: JsonObject = {};
  let first = true;
  for (const part of splitAtCommas(text)) {
    const equals = part.indexOf('=');
    if (equals < 0) {
      if (!first || implicitKey === undefined)
        throw new BlockError('invalid', `Expected '=' after parameter '${part}'`);
      put(out, implicitKey, part);
    } else put(out, part.slice(0, equals), part.slice(equals + 1));
    first = false;
  }
  return withLists(out) as JsonObject;
}

function parseJsonOptions(text: string): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new BlockError('invalid', `JSON parse error, ${(error as Error).message}`, { cause: error });
  }
  return value as JsonObject;
}

function splitAtCommas(text: string): string[] {
  if (text === '') return [];
  const parts: string[] = [];
  let part = '';
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== ',') part += text[i];
    else if (text[i + 1] === ',') {
      part += ',';
      i++;
    } else {
      parts.push(part);
      part = '';
    }
  }
  return part === '' && text.endsWith(',') ? parts : [...parts, part];
}

function put(out: JsonObject, key: string, value: string): void {
  const path = key.split('.');
  let at = out;
  for (const [i, name] of path.entries()) {
    if (!/^([A-Za-z_][A-Za-z0-9_-]*|\d+)$/.test(name))
      throw new BlockError('invalid', `Invalid parameter '${key}'`);
    if (i === path.length - 1) {
      if (typeof at[name] === 'object') throw mixed(path.slice(0, i + 1));
      at[name] = value;
      return;
    }
    const next: JsonValue = (at[name] ??= {});
    if (next === null || typeof next !== 'object' || Array.isArray(next)) throw mixed(path.slice(0, i + 1));
    at = next;
  }
}

function mixed(path: readonly string[]): BlockError {
  return new BlockError('invalid', `Parameters '${path.join('.')}.*' used inconsistently`);
}

/** Objects whose keys are 0, 1, 2 ... are lists. */
function withLists(value: JsonValue): JsonValue {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return value;
  const entries = Object.entries(value).map(([key, member]) => [key, withLists(member)] as const);
  if (entries.length === 0 || !entries.every(([key]) => /^\d+$/.test(key)))
    return Object.fromEntries(entries);
  return entries.map(([, member]) => member);
}
