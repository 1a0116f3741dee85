import { defined } from '../../base/assert.js';
import type { DriverDescription, Json, NewFileTraits, NodeOptions } from '../../block/driver.js';
import type { ToolOption } from '../../schema/create-options.js';
import { bool, size } from '../../schema/types.js';
import { explain, ToolFailure } from './tool.js';

/** What `-o` says, still as text: names as qemu-img has them. */
export type OptionTexts = ReadonlyMap<string, string>;

/** "a=b,c=d,e,nof": a comma in a value is doubled, a name alone means "on", one behind "no" means "off". Errors: ToolFailure. */
export function splitOptions(texts: readonly string[]): Map<string, string> {
  const split = new Map<string, string>();
  for (const text of texts) {
    // A comma begins it, or one that is not doubled ends it.
    if (/^(,|$)|(^|[^,])(,,)*,$/.test(text)) throw new ToolFailure(`Invalid option list: ${text}`);
    for (const part of text.match(/(?:[^,]|,,)+/g) ?? []) {
      const clean = part.replaceAll(',,', ',');
      const equals = clean.indexOf('=');
      if (equals < 0 && clean.startsWith('no')) split.set(clean.slice('no'.length), 'off');
      else if (equals < 0) split.set(clean, 'on');
      else split.set(clean.slice(0, equals), clean.slice(equals + 1));
    }
  }
  return split;
}

/** Of the file, whatever is in it; see fileTraits(). */
const OF_FILE = 'nocow';
/** Options that every format with backing files takes; the caller sees to them. */
const GENERAL = new Set(['size', 'backing_file', 'backing_fmt']);

/**
 * The driver's creation options, by their QMP names; size and backing file are left to the caller. Errors:
 * ToolFailure, in QEMU's words, or naming what livedisk does not have.
 */
export function driverOptions(driver: DriverDescription, texts: OptionTexts): NodeOptions {
  return parsedOptions(driver, texts, () => true);
}

/** What QEMU finds wrong before it looks at words that are to be one of several. Errors: as driverOptions. */
export function checkOptionTexts(driver: DriverDescription, texts: OptionTexts): void {
  parsedOptions(driver, texts, (member) => !isWord(driver, member));
}

/** Those whose member of the creation options is `wanted`. */
function parsedOptions(
  driver: DriverDescription,
  texts: OptionTexts,
  wanted: (member: string) => boolean,
): NodeOptions {
  const options: NodeOptions = {};
  try {
    for (const [name, text] of texts) {
      if (name === 'encryption' || name.startsWith('encrypt.')) {
        toolOption(driver, name);
        continue;
      }
      if (GENERAL.has(name) && (name === 'size' || driver.options.backing)) continue;
      if (name === OF_FILE) {
        bool.parse(text, name, 'flat');
        continue;
      }
      const { member, aliases, switches, hasNamelessErrors } = toolOption(driver, name);
      const word = switches ? switches[bool.parse(text, name, 'flat') ? 0 : 1] : (aliases?.[text] ?? text);
      if (wanted(member))
        options[member] = parseOption(driver, member, hasNamelessErrors === true ? '' : name, word) as Json;
    }
    Object.assign(options, encryption(driver, texts, wanted('encrypt')));
  } catch (error) {
    throw explain(error, '');
  }
  return options;
}

function isWord(driver: DriverDescription, member: string): boolean {
  return member === 'encrypt' || driver.createOptions?.[member]?.type.description.kind === 'enum';
}

/** What options that were checked (driverOptions) say of the image's file. */
export function fileTraits(texts: OptionTexts): NewFileTraits {
  const text = texts.get(OF_FILE);
  return { noCopyOnWrite: text !== undefined && bool.parse(text, OF_FILE, 'flat') };
}

/** The members of `encrypt`, each an option of its own. Errors: ToolFailure, invalid. */
function encryption(driver: DriverDescription, texts: OptionTexts, isWanted: boolean): NodeOptions {
  const { encrypt } = driver.createOptions ?? {};
  const given = new Map<string, string>();
  for (const [name, text] of texts) {
    if (name !== 'encryption' && !name.startsWith('encrypt.')) continue;
    if (name === 'encryption' && texts.has('encrypt.format'))
      throw new ToolFailure("'encrypt.format' and its alias 'encryption' can't be used at the same time");
    if (name !== 'encryption') given.set(name.slice('encrypt.'.length), text);
    else if (bool.parse(text, name, 'flat')) given.set('format', 'aes');
  }
  if (given.size === 0 || !encrypt || !isWanted) return {};
  // QMP has another word for it.
  if (given.get('format') === 'aes') given.set('format', 'qcow');
  return { encrypt: encrypt.type.parse(Object.fromEntries(given), 'encrypt', 'keyval') as Json };
}

function toolOption({ name: format, toolOptions = [] }: DriverDescription, name: string): SetOption {
  const option = toolOptions.find(
    (one) => one.name === name || (one.name.endsWith('.') && name.startsWith(one.name)),
  );
  if (!option) throw new ToolFailure(`Invalid parameter '${name}'`);
  const { member } = option;
  if (member !== undefined) return { ...option, member };
  throw new ToolFailure(`${format}: option '${name}' is not supported by livedisk`);
}

type SetOption = ToolOption & { member: string };

/** Names of values are checked last, by the name that QMP has for the option. */
function parseOption(driver: DriverDescription, member: string, name: string, text: string): unknown {
  const type = defined(driver.createOptions?.[member], `creation option ${member}`).type;
  if (type.description.kind === 'enum' && name !== '') return type.parse(text, member, 'keyval');
  return type.parse(text, name, 'flat');
}

/** Errors: ToolFailure where there is no place for what -b and -F (-B and -F) say. */
export function checkTakesBacking(
  { name, options }: DriverDescription,
  file: string | undefined,
  format: string | undefined,
): void {
  if (options.backing) return;
  if (file !== undefined) throw new ToolFailure(`Backing file not supported for file format '${name}'`);
  if (format !== undefined)
    throw new ToolFailure(`Backing file format not supported for file format '${name}'`);
}

/** Why an image cannot say that its backing file is of that format. */
export function invalidBackingFormat(format: string): string {
  return `Parameter 'backing-fmt' does not accept value '${format}'`;
}

/** A size among `-o` options. */
export function sizeValue(name: string, text: string): number {
  try {
    return size.parse(text, name, 'flat');
  } catch (error) {
    throw explain(error, '');
  }
}
