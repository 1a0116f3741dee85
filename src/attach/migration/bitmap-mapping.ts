import { BlockError } from '../../base/error.js';
import type { BitmapMapping } from '../../schema/migration.js';

/** QEMU's longest node name; other names are told by one byte of length in its stream. */
const MAX_NODE_NAME_BYTES = 31;
/** Of names that stand in the stream. */
export const MAX_ALIAS_BYTES = 255;
/** QEMU's longest name of a bitmap. */
const MAX_BITMAP_NAME_BYTES = 1023;

/** One to one in both directions. Errors: kind invalid, in QEMU's words. */
export function checkMapping(mapping: readonly BitmapMapping[]): void {
  const nodes = new Set<string>();
  const aliases = new Set<string>();
  for (const { 'node-name': node, alias, bitmaps } of mapping) {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(alias)) refuse(`The node alias '${alias}' is not well-formed`);
    checkLength('node alias', alias, MAX_ALIAS_BYTES);
    checkLength('node name', node, MAX_NODE_NAME_BYTES);
    if (nodes.has(node)) refuse(`The node name '${node}' is mapped twice`);
    if (aliases.has(alias)) refuse(`The node alias '${alias}' is used twice`);
    nodes.add(node);
    aliases.add(alias);
    checkBitmaps(node, alias, bitmaps);
  }
}

function checkBitmaps(node: string, nodeAlias: string, bitmaps: BitmapMapping['bitmaps']): void {
  const names = new Set<string>();
  const aliases = new Set<string>();
  for (const { name, alias } of bitmaps) {
    checkLength('bitmap alias', alias, MAX_ALIAS_BYTES);
    checkLength('bitmap name', name, MAX_BITMAP_NAME_BYTES);
    if (names.has(name)) refuse(`The bitmap '${node}'/'${name}' is mapped twice`);
    if (aliases.has(alias)) refuse(`The bitmap alias '${nodeAlias}'/'${alias}' is used twice`);
    names.add(name);
    aliases.add(alias);
  }
}

function checkLength(what: string, name: string, mostBytes: number): void {
  if (Buffer.byteLength(name) > mostBytes) refuse(`The ${what} '${name}' is longer than ${mostBytes} bytes`);
}

function refuse(why: string): never {
  throw new BlockError('invalid', `Invalid mapping given for block-bitmap-mapping: ${why}`);
}
