import type { Node } from '../../block/node.js';
import { Arguments, options, sizeOf } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

/** A stretch of the disk, as QAPI's MapEntry has it. */
interface MapEntry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  /** Where it lies in a file of the image's, and that file's name. */
  offset?: number;
  filename?: string;
}

/** map [-f FMT] [-s OFFSET] [-l LENGTH] [--output=human|json] [-U] [--image-opts] FILE */
export async function mapCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    'f|format:',
    '|output:',
    's|start-offset:',
    'l|max-length:',
    'U|force-share',
    '|image-opts',
  );
  const args = new Arguments(words, taken, {
    'start-offset': (text) => sizeOf(text, 'start offset'),
    'max-length': (text) => sizeOf(text, 'max length'),
  });
  const start = args.size('start-offset', 'start offset') ?? 0;
  const length = args.size('max-length', 'max length');
  const filename = args.image();
  const json = args.wantsJson();
  const backend = await tool.open(filename, {
    format: args.value('format'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
  });
  const end = Math.min(backend.lengthBytes, length === undefined ? Infinity : start + length);
  const entries = mapEntries(backend.node, start, end);
  try {
    if (json) await printJson(tool, entries, start);
    else await printTable(tool, entries);
  } catch (error) {
    if (error instanceof ToolFailure) throw error;
    throw explain(error, 'Could not read file metadata: ');
  }
  return 0;
}

/** Extents of [start, end), neighbours that continue each other as one. */
export async function* mapEntries(node: Node, start: number, end: number): AsyncGenerator<MapEntry> {
  let last: MapEntry | undefined;
  for (let at = start; at < end;) {
    const entry = await entryAt(node, at, end - at);
    at += entry.length;
    if (last && continues(last, entry)) last.length += entry.length;
    else {
      if (last) yield last;
      last = entry;
    }
  }
  if (last) yield last;
}

/** The first layer, from the top, that says what is there; where none does, the last one asked. */
async function entryAt(top: Node, start: number, lengthBytes: number): Promise<MapEntry> {
  let node = top.skipFilters();
  let length = lengthBytes;
  for (let depth = 0; ; depth++) {
    const status = await node.io.status(start, length);
    length = status.lengthBytes;
    if (status.allocated) {
      const { zero, data, hostOffset, hostChild } = status;
      // An export may have space that nothing is known of; QEMU tells it like this.
      if (!zero && !data) return { start, length, depth, present: false, zero, data };
      const entry: MapEntry = { start, length, depth, present: true, zero, data };
      if (hostOffset !== undefined) {
        entry.offset = hostOffset;
        const edge = [...node.children.values()].find((child) => child === hostChild);
        entry.filename = (edge?.node ?? node).filename;
      }
      return entry;
    }
    const below = node.backingNode();
    if (!below || start >= below.lengthBytes)
      return { start, length, depth, present: false, zero: true, data: false };
    length = Math.min(length, below.lengthBytes - start);
    node = below;
  }
}

function continues(a: MapEntry, b: MapEntry): boolean {
  return (
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.filename === b.filename &&
    (a.offset === undefined ? b.offset === undefined : b.offset === a.offset + a.length)
  );
}

function entryJson(e: MapEntry): string {
  const offset = e.offset === undefined ? '' : `, "offset": ${e.offset}`;
  return (
    `{ "start": ${e.start}, "length": ${e.length}, "depth": ${e.depth}, "present": ${e.present}, ` +
    `"zero": ${e.zero}, "data": ${e.data}${offset}}`
  );
}

async function printJson(tool: Tool, entries: AsyncIterable<MapEntry>, start: number): Promise<void> {
  let before = '';
  tool.out.print('[');
  for await (const entry of entries) {
    tool.out.print(before + entryJson(entry));
    before = ',\n';
  }
  if (before === '') {
    const nothing = { start, length: 0, depth: 0, present: false, zero: false, data: false };
    tool.out.print(entryJson(nothing));
  }
  tool.out.print(']\n');
}

async function printTable(tool: Tool, entries: AsyncIterable<MapEntry>): Promise<void> {
  const column = (text: string): string => text.padEnd(16);
  const hex = (value: number): string => column(value === 0 ? '0' : `0x${value.toString(16)}`);
  tool.out.print(`${column('Offset')}${column('Length')}${column('Mapped to')}File\n`);
  for await (const { data, zero, start, length, offset, filename } of entries) {
    if (!data || zero) continue;
    if (offset === undefined)
      throw new ToolFailure('File contains external, encrypted or compressed clusters.');
    tool.out.print(`${hex(start)}${hex(length)}${hex(offset)}${filename}\n`);
  }
}
