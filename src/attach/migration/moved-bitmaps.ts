import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { MAX_BITMAP_GRANULES, MiB } from '../../base/limits.js';
import { isPowerOfTwo } from '../../base/align.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { nodeNamed } from '../../block/find-node.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { MAX_ALIAS_BYTES } from './bitmap-mapping.js';
import type { BitmapMapping } from '../../schema/migration.js';
import { arrayOf, bool, type Infer, int, type JsonValue, required, str, struct } from '../../schema/types.js';
import type { Section } from '../../wire/migration/messages.js';

/** Named dirty bitmaps on their way to another machine, by the aliases of their nodes and of themselves. */

export const BITMAP_SECTION = 'bitmap';
const VERSION = 1;
/** Of a bitmap's bits, in one section. */
const PART_BYTES = MiB;

const Head = struct('bitmap', {
  node: required(str),
  name: required(str),
  granularity: required(int),
  sizeBytes: required(int),
  enabled: required(bool),
  persistent: required(bool),
  /** Where the part begins, in bytes of bits. */
  at: required(int),
  totalBytes: required(int),
});
type Head = Infer<typeof Head>;

/** Which bitmaps are to come, told while the guest still runs. */
export const ANNOUNCED_SECTION = 'bitmaps';
const Announced = struct('bitmaps', {
  bitmaps: required(arrayOf(struct('announced', { node: required(str), name: required(str) }))),
});

type Mapping = readonly BitmapMapping[] | undefined;

/**
 * Those that go along; `isEarly`: without those that are in use now and may not be by then. Errors: busy, permission or invalid,
 * in QEMU's words, for one that cannot go.
 */
export function leavingBitmaps(graph: Graph, mapping: Mapping, isEarly = false): LeavingBitmap[] {
  const leaving: LeavingBitmap[] = [];
  for (const { node, alias, bitmaps } of nodesWithBitmaps(graph, mapping))
    for (const bitmap of bitmaps) {
      if (isEarly && bitmap.busy) continue;
      const entry = entryOf(mapping, node, bitmap);
      const name = mapping ? entry?.alias : bitmap.name;
      if (name === undefined) continue;
      assertMayGo(node, alias, bitmap);
      if (Buffer.byteLength(name) > MAX_ALIAS_BYTES) throw tooLong(node, bitmap);
      const persistent = entry?.transform?.persistent ?? bitmap.persistent;
      leaving.push({ bitmap, node: alias, name, persistent });
    }
  return leaving;
}

/** A bitmap, and what the destination knows it by. */
export interface LeavingBitmap {
  readonly bitmap: DirtyBitmap;
  readonly node: string;
  readonly name: string;
  readonly persistent: boolean;
}

interface Found {
  node: Node;
  alias: string;
  bitmaps: DirtyBitmap[];
}

/** Drives first, which go by their own names. */
function* nodesWithBitmaps(graph: Graph, mapping: Mapping): Generator<Found> {
  const seen = new Set<Node>();
  const named = (node: Node): DirtyBitmap[] => node.dirtyBitmaps.filter(({ name }) => name !== undefined);
  if (!mapping)
    for (const [id, { root }] of graph.drives) {
      const top = root?.node;
      const node = top && named(top).length > 0 ? top : top?.skipFilters();
      if (!node || seen.has(node) || named(node).length === 0) continue;
      seen.add(node);
      yield { node, alias: id, bitmaps: named(node) };
    }
  for (const node of graph.nodes.values()) {
    if (seen.has(node) || named(node).length === 0) continue;
    const alias = mapping ? mapping.find((entry) => entry['node-name'] === node.name)?.alias : node.name;
    if (alias !== undefined) yield { node, alias, bitmaps: named(node) };
  }
}

type Entry = BitmapMapping['bitmaps'][number];

function entryOf(mapping: Mapping, node: Node, { name }: DirtyBitmap): Entry | undefined {
  const entry = mapping?.find((candidate) => candidate['node-name'] === node.name);
  return entry?.bitmaps.find((candidate) => candidate.name === name);
}

function assertMayGo(node: Node, alias: string, bitmap: DirtyBitmap): void {
  if (alias.startsWith('#'))
    throw new BlockError(
      'invalid',
      `Bitmap '${bitmap.name}' in a node with auto-generated name '${node.name}' can't be migrated`,
    );
  bitmap.assertUsable('change');
}

function tooLong(node: Node, { name }: DirtyBitmap): BlockError {
  return new BlockError(
    'invalid',
    `Cannot migrate bitmap '${name}' on node '${node.name}': Name is longer than ${MAX_ALIAS_BYTES} bytes`,
  );
}

/** Errors: those of leavingBitmaps. */
export function announceBitmaps(graph: Graph, mapping: Mapping): Section[] {
  const bitmaps = leavingBitmaps(graph, mapping, true).map(({ node, name }) => ({ node, name }));
  if (bitmaps.length === 0) return [];
  return [{ name: ANNOUNCED_SECTION, version: VERSION, bytes: Buffer.from(JSON.stringify({ bitmaps })) }];
}

export function saveBitmap({ bitmap, node, name, persistent }: LeavingBitmap): Section[] {
  const bits = bitmap.bytes();
  const sections: Section[] = [];
  for (let at = 0; at < bits.length; at += PART_BYTES) {
    const head: Head = {
      ...{ node, name, at, totalBytes: bits.length, persistent },
      ...{ granularity: bitmap.granularityBytes, sizeBytes: bitmap.sizeBytes, enabled: bitmap.enabled },
    };
    sections.push(encode(head, bits.subarray(at, at + PART_BYTES)));
  }
  return sections;
}

/** u32 length of the head, the head in JSON, bits. */
function encode(head: Head, bits: Uint8Array): Section {
  const json = Buffer.from(JSON.stringify(head));
  const length = Buffer.alloc(4);
  length.writeUInt32BE(json.length);
  return { name: BITMAP_SECTION, version: VERSION, bytes: Buffer.concat([length, json, bits]) };
}

function decode({ bytes }: Section): { head: Head; bits: Buffer } {
  const end = 4 + bytes.readUInt32BE(0);
  const head = Head.parse(JSON.parse(bytes.toString('utf8', 4, end)) as JsonValue, '', 'qmp');
  return { head, bits: bytes.subarray(end) };
}

interface Arriving {
  readonly head: Head;
  readonly node: Node;
  readonly name: string;
  readonly persistent: boolean;
  readonly bits: Buffer;
  /** Bytes of bits that have come. */
  came: number;
  /** In its node, where nobody uses it yet. */
  placed?: DirtyBitmap;
}

interface Place {
  node: Node;
  name: string;
  persistent: boolean;
}

/** Bitmaps that come. Nobody can use them before settle(), and removed they leave nothing. */
export class ArrivingBitmaps {
  readonly #graph: Graph;
  readonly #mapping: Mapping;
  readonly #warn: (text: string) => void;
  readonly #bitmaps: Arriving[] = [];
  /** As in QEMU: after an alias that nobody knows, no more is taken. */
  #isGivenUp = false;

  constructor(graph: Graph, mapping: Mapping, warn: (text: string) => void) {
    this.#graph = graph;
    this.#mapping = mapping;
    this.#warn = warn;
  }

  /** Errors: kind corrupt; exists. */
  take(section: Section): void {
    if (section.version !== VERSION)
      throw new BlockError('unsupported', `Bitmaps of version ${section.version} are not known here`);
    const { head, bits } = decode(section);
    checkHead(head, bits.length);
    if (this.#isGivenUp) return;
    const last = this.#bitmaps.at(-1);
    if (head.at === 0) this.#begin(head);
    else if (!last || last.head.name !== head.name || last.came !== head.at) throw damaged();
    if (this.#isGivenUp) return;
    const arriving = this.#bitmaps.at(-1);
    assert(arriving, 'a bitmap has begun');
    bits.copy(arriving.bits, head.at);
    arriving.came += bits.length;
  }

  /** Errors: exists, for one that could not come. */
  announce({ bytes }: Section): void {
    const { bitmaps } = Announced.parse(JSON.parse(bytes.toString('utf8')) as JsonValue, '', 'qmp');
    for (const bitmap of bitmaps) {
      const place = this.#placeOf({ ...bitmap, persistent: false });
      if (typeof place !== 'string') assertFree(place);
    }
  }

  #begin(head: Head): void {
    const place = this.#placeOf(head);
    if (typeof place === 'string') {
      this.#isGivenUp = true;
      return this.#warn(place);
    }
    assertFree(place);
    const { node, name, persistent } = place;
    this.#bitmaps.push({ head, node, name, persistent, bits: Buffer.alloc(head.totalBytes), came: 0 });
  }

  /** Or why there is none. */
  #placeOf({
    node: alias,
    name: bitmapAlias,
    persistent,
  }: Pick<Head, 'node' | 'name' | 'persistent'>): Place | string {
    const entry = this.#mapping?.find((candidate) => candidate.alias === alias);
    if (this.#mapping && !entry) return `Error: Unknown node alias '${alias}'`;
    const nodeName = entry?.['node-name'] ?? alias;
    const node = nodeNamed(this.#graph, nodeName);
    if (!node) return `Cannot find device='${entry ? '' : nodeName}' nor node-name='${nodeName}'`;
    if (!entry) return { node, name: bitmapAlias, persistent };
    const bitmap = entry.bitmaps.find((candidate) => candidate.alias === bitmapAlias);
    if (!bitmap)
      return `Error: Unknown bitmap alias '${bitmapAlias}' on node '${nodeName}' (alias '${alias}')`;
    return { node, name: bitmap.name, persistent: bitmap.transform?.persistent ?? persistent };
  }

  /** Errors: corrupt, for a bitmap that lacks a part. */
  assertWhole(): void {
    if (this.#bitmaps.some(({ head, came }) => came !== head.totalBytes)) throw damaged();
  }

  /** They come into their nodes before the images are opened: one that an image has of the same name is outdated. */
  place(): void {
    for (const arriving of this.#bitmaps) {
      const { head, node, name, bits, persistent } = arriving;
      const bitmap = new DirtyBitmap(head.sizeBytes, head.granularity, name);
      setBits(bitmap, bits);
      // Until it is used here, no image is to store it.
      Object.assign(bitmap, { enabled: false, busy: true, persistent, isGivenAway: true });
      arriving.placed = bitmap;
      node.dirtyBitmaps.push(bitmap);
    }
  }

  /** Once the images are as the source has left them. Errors: invalid. */
  check(): void {
    for (const { head, node, name } of this.#bitmaps) {
      if (node.lengthBytes === head.sizeBytes) continue;
      const sizes = `${head.sizeBytes} bytes at the source and ${node.lengthBytes} here`;
      throw new BlockError('invalid', `Bitmap '${name}' does not fit node '${node.name}': ${sizes}`);
    }
  }

  settle(): void {
    for (const { head, placed } of this.#bitmaps)
      if (placed) Object.assign(placed, { enabled: head.enabled, busy: false, isGivenAway: false });
  }

  /** They have never come. */
  remove(): void {
    for (const arriving of this.#bitmaps) {
      const { node, placed } = arriving;
      if (placed) node.dirtyBitmaps.splice(node.dirtyBitmaps.indexOf(placed), 1);
      delete arriving.placed;
    }
  }
}

function assertFree({ node, name }: Place): void {
  if (node.findBitmap(name))
    throw new BlockError('exists', `Bitmap with the same name ('${name}') already exists on destination`);
}

function checkHead({ granularity, sizeBytes, at, totalBytes }: Head, partBytes: number): void {
  const granules = Math.ceil(sizeBytes / granularity);
  const isSound =
    granularity >= 512 &&
    isPowerOfTwo(granularity) &&
    sizeBytes >= 0 &&
    granules <= MAX_BITMAP_GRANULES &&
    totalBytes === Math.max(8, Math.ceil(granules / 64) * 8) &&
    at >= 0 &&
    at + partBytes <= totalBytes;
  if (!isSound) throw damaged();
}

function damaged(): BlockError {
  return new BlockError('corrupt', 'The migration stream is damaged: a bitmap');
}

function setBits(bitmap: DirtyBitmap, bits: Buffer): void {
  const { granularityBytes: unit, sizeBytes } = bitmap;
  for (const [i, byte] of bits.entries()) {
    if (byte === 0) continue;
    for (let bit = 0; bit < 8; bit++) {
      const offset = (i * 8 + bit) * unit;
      if (Math.floor(byte / 2 ** bit) % 2 === 1 && offset < sizeBytes)
        bitmap.set(offset, Math.min(unit, sizeBytes - offset));
    }
  }
}
