import type { ObjectRegistry } from '../../block/objects/object-registry.js';
import { OBJECT_TYPES } from '../../block/objects/types.js';
import { ObjectOptions } from '../../schema/objects.js';
import { isJsonOption, parseKeyval } from './keyval.js';

/** What --object asks for. Errors: invalid, in QEMU's words; unsupported for types of QEMU's that livedisk lacks. */
export function parseObject(text: string): ObjectOptions {
  return ObjectOptions.parse(parseKeyval(text, 'qom-type'), '', isJsonOption(text) ? 'qmp' : 'keyval');
}

/** The answer to `--object help` and `--object TYPE,help`; undefined when it asks for an object. */
export function objectHelp(text: string): string | undefined {
  const [, name, isAsked] = /^([^,=]*)(,(?:help|\?))?$/.exec(text) ?? [];
  if (name === 'help' || name === '?') {
    const names = OBJECT_TYPES.map((type) => `  ${type.name}\n`);
    return `List of user creatable objects:\n${names.sort().join('')}`;
  }
  const type = OBJECT_TYPES.find((candidate) => candidate.name === name);
  if (isAsked === undefined || !type) return undefined;
  const lines = type.properties
    .filter((property) => property.type)
    .map((property) => `  ${property.name}=<${property.qomType}>\n`);
  return `${type.name} options:\n${lines.sort().join('')}`;
}

/** Makes the objects that a tool's command line asks for, and answers its other words. */
export async function makeObjects(words: readonly string[], objects: ObjectRegistry): Promise<string[]> {
  const rest: string[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? '';
    if (word === '--') return [...rest, ...words.slice(at)];
    const next = words[at + 1];
    const isSeparate = word === '--object' && next !== undefined;
    const text = isSeparate ? next : /^--object=(.*)$/s.exec(word)?.[1];
    if (text === undefined) rest.push(word);
    else await objects.add(parseObject(text));
    if (isSeparate) at++;
  }
  return rest;
}
