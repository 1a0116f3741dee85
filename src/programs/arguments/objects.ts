import { BlockError } from '../../base/error.js';
import { OBJECT_TYPES } from '../../block/objects/types.js';
import { ObjectOptions } from '../../schema/objects.js';
import { isJsonOption, parseKeyval } from './keyval.js';

/** What --object asks for. Errors: invalid, in QEMU's words; unsupported for types of QEMU's that livedisk lacks. */
export function parseObject(text: string): ObjectOptions {
  return ObjectOptions.parse(parseKeyval(text, 'qom-type'), '', isJsonOption(text) ? 'qmp' : 'keyval');
}

/**
 * The answer to `--object help` and `--object TYPE,help` of a program that makes objects of machines, or none; undefined when
 * it asks for an object. Errors: invalid, in QEMU's words.
 */
export function objectHelp(text: string, kind: 'machine' | 'storage-daemon'): string | undefined {
  if (isJsonOption(text)) return undefined;
  const [name = '', ...words] = text.split(',');
  const isHelp = (word: string): boolean => word === 'help' || word === '?';
  if (!isHelp(name) && !words.some(isHelp)) return undefined;
  const type = OBJECT_TYPES.find((candidate) => candidate.name === name);
  if (type) {
    const lines = type.properties
      .filter((property) => property.type)
      .map((property) => `  ${property.name}=<${property.qomType}>\n`);
    return `${type.name} options:\n${lines.sort().join('')}`;
  }
  if (!isHelp(name) && kind === 'machine')
    throw new BlockError('invalid', `Parameter 'qom-type' does not accept value '${name}'`);
  const there = OBJECT_TYPES.filter(({ ofMachines }) => kind === 'machine' || !ofMachines);
  const names = there.map((candidate) => `  ${candidate.name}\n`);
  return `List of user creatable objects:\n${names.sort().join('')}`;
}

/** The answer to the first `--object` of a tool that asks for help. */
export function toolObjectHelp(texts: readonly string[]): string | undefined {
  for (const text of texts) {
    const help = objectHelp(text, 'storage-daemon');
    if (help !== undefined) return help;
  }
  return undefined;
}

/** What stands behind `--object` among a tool's words, and its other words. */
export function splitObjects(words: readonly string[]): { objects: string[]; rest: string[] } {
  const objects: string[] = [];
  const rest: string[] = [];
  for (let at = 0; at < words.length; at++) {
    const word = words[at] ?? '';
    if (word === '--') return { objects, rest: [...rest, ...words.slice(at)] };
    const next = words[at + 1];
    const isSeparate = word === '--object' && next !== undefined;
    const text = isSeparate ? next : /^--object=(.*)$/s.exec(word)?.[1];
    (text === undefined ? rest : objects).push(text ?? word);
    if (isSeparate) at++;
  }
  return { objects, rest };
}
