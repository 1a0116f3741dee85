import type { NodeOptions } from '../block/driver.js';
import { parseSize } from '../schema/size.js';
import { ToolFailure } from './tool.js';

/** What `-o` says, still as text: names as qemu-img has them. */
export type OptionTexts = ReadonlyMap<string, string>;

/** "a=b,c=d,e": a comma in a value is doubled, a name alone means "on". Errors: ToolFailure. */
export function splitOptions(texts: readonly string[]): Map<string, string> {
  const split = new Map<string, string>();
  for (const text of texts) {
    // A comma begins it, or one that is not doubled ends it.
    if (/^(,|$)|(^|[^,])(,,)*,$/.test(text)) throw new ToolFailure(`Invalid option list: ${text}`);
    for (const part of text.match(/(?:[^,]|,,)+/g) ?? []) {
      const clean = part.replaceAll(',,', ',');
      const equals = clean.indexOf('=');
      if (equals < 0) split.set(clean, 'on');
      else split.set(clean.slice(0, equals), clean.slice(equals + 1));
    }
  }
  return split;
}

type Kind = 'size' | 'number' | 'boolean' | 'string';

/** Options of qcow2, with the name that blockdev-create gives them. */
const QCOW2: Readonly<Record<string, { kind: Kind; name: string }>> = {
  cluster_size: { kind: 'size', name: 'cluster-size' },
  compat: { kind: 'string', name: 'version' },
  compression_type: { kind: 'string', name: 'compression-type' },
  extended_l2: { kind: 'boolean', name: 'extended-l2' },
  lazy_refcounts: { kind: 'boolean', name: 'lazy-refcounts' },
  preallocation: { kind: 'string', name: 'preallocation' },
  refcount_bits: { kind: 'number', name: 'refcount-bits' },
};

/** Known to QEMU; livedisk has none of it. */
const REFUSED_QCOW2 = /^(encryption|encrypt\..*|data_file|data_file_raw|extent_size_hint|nocow)$/;
const REFUSED_RAW = /^(extent_size_hint|nocow)$/;

/** Options that every format takes. */
const GENERAL = new Set(['size', 'backing_file', 'backing_fmt']);

const VERSIONS: Readonly<Record<string, string>> = { '0.10': 'v2', v2: 'v2', '1.1': 'v3', v3: 'v3' };

/**
 * The driver's creation options, by their QMP names; size and backing file are left to the caller. Errors:
 * ToolFailure, in QEMU's words, or naming what livedisk does not have.
 */
export function driverOptions(format: string, texts: OptionTexts): NodeOptions {
  const options: NodeOptions = {};
  for (const [name, text] of texts) {
    if (GENERAL.has(name) && (name === 'size' || format !== 'raw')) continue;
    if (format === 'raw') checkRaw(name, text);
    else if (format === 'qcow2') setQcow2(options, name, text);
    else throw new ToolFailure(`Invalid parameter '${name}'`);
  }
  return options;
}

function checkRaw(name: string, text: string): void {
  if (name === 'backing_file') throw new ToolFailure("Backing file not supported for file format 'raw'");
  if (name === 'backing_fmt')
    throw new ToolFailure("Backing file format not supported for file format 'raw'");
  if (REFUSED_RAW.test(name)) throw new ToolFailure(`raw: option '${name}' is not supported by livedisk`);
  if (name !== 'preallocation') throw new ToolFailure(`Invalid parameter '${name}'`);
  checkPreallocation('raw', text);
}

function checkPreallocation(format: string, text: string): void {
  if (!['off', 'metadata', 'falloc', 'full'].includes(text))
    throw new ToolFailure(`Parameter 'preallocation' does not accept value '${text}'`);
  if (text !== 'off') throw new ToolFailure(`${format}: preallocation=${text} is not supported by livedisk`);
}

function setQcow2(options: NodeOptions, name: string, text: string): void {
  if (REFUSED_QCOW2.test(name)) throw new ToolFailure(`qcow2: option '${name}' is not supported by livedisk`);
  const option = Object.hasOwn(QCOW2, name) ? QCOW2[name] : undefined;
  if (!option) throw new ToolFailure(`Invalid parameter '${name}'`);
  if (name === 'preallocation') checkPreallocation('qcow2', text);
  const value = parseValue(name, option.kind, text);
  if (name !== 'compat') options[option.name] = value;
  else {
    const version = Object.hasOwn(VERSIONS, text) ? VERSIONS[text] : undefined;
    if (version === undefined) throw new ToolFailure(`Parameter 'version' does not accept value '${text}'`);
    options['version'] = version;
  }
}

function parseValue(name: string, kind: Kind, text: string): number | boolean | string {
  switch (kind) {
    case 'string':
      return text;
    case 'boolean':
      if (text === 'on' || text === 'off') return text === 'on';
      throw new ToolFailure(`Parameter '${name}' expects 'on' or 'off'`);
    case 'number':
      if (/^\d+$/.test(text)) return Number(text);
      throw new ToolFailure(`Parameter '${name}' expects a number`);
    case 'size':
      return sizeValue(name, text);
  }
}

/** Why an image cannot say that its backing file is of that format. */
export function invalidBackingFormat(format: string): string {
  return `Parameter 'backing-fmt' does not accept value '${format}'`;
}

/** A size among `-o` options. */
export function sizeValue(name: string, text: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined) return bytes;
  throw new ToolFailure(`Parameter '${name}' expects a non-negative number below 2^64`, {
    hint:
      'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n' +
      'and exabytes, respectively.',
  });
}

/** "Formatting 'FILE', fmt=..." with every option and its default, in qemu-img's order. */
export function formattingText(
  filename: string,
  format: string,
  sizeBytes: number,
  texts: OptionTexts,
): string {
  const parts: string[] = [];
  const show = (name: string, value = texts.get(name)): void => {
    if (value !== undefined) parts.push(` ${name}=${value.replaceAll(',', ',,')}`);
  };
  if (format === 'qcow2') {
    show('cluster_size', String(parseSize(texts.get('cluster_size') ?? '65536')));
    show('extended_l2', texts.get('extended_l2') ?? 'off');
    show('preallocation');
    show('compression_type', texts.get('compression_type') ?? 'zlib');
  }
  show('size', String(sizeBytes));
  show('compat');
  show('backing_file');
  show('backing_fmt');
  if (format === 'qcow2') {
    show('lazy_refcounts', texts.get('lazy_refcounts') ?? 'off');
    show('refcount_bits', texts.get('refcount_bits') ?? '16');
  } else show('preallocation');
  return `Formatting '${filename}', fmt=${format}${parts.join('')}\n`;
}
