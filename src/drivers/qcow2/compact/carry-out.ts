import { alignDown } from '../../../base/align.js';
import { MiB } from '../../../base/limits.js';
import { isZero } from '../../../base/zero.js';
import { readPadded } from '../check/held.js';
import { encodeBitmapsExtension } from '../disk/bitmap-directory.js';
import { FieldOffset } from '../disk/header.js';
import { ExtensionType } from '../disk/header-extensions.js';
import { SECTOR_BYTES, writeU64 } from '../disk/layout.js';
import { changeHeader } from '../features/header-change.js';
import type { OpenImage } from '../open-image.js';
import { setRefcounts } from '../space/bulk.js';
import { type Pointer, type PointerTable, pointerTables, type Structure } from './pointer-tables.js';
import { dropsOf, type Moves } from './plan.js';
import { type Survey, Use } from './survey.js';

/** Most that is read and written at a time. */
const COPY_BYTES = 2 * MiB;

/**
 * Moves parts of an image; durable on return. What is at the new places is counted and written before anything names
 * them, and what is at the old ones stays until nothing does: a crash leaves leaks at most. `image` is not what it was
 * afterwards; `open` opens it anew. `onCopied` hears of clusters. Errors: those of opening, reading and writing.
 */
export async function carryOut(
  image: OpenImage,
  open: () => Promise<OpenImage>,
  { structure, survey, moves }: { structure: Structure; survey: Survey; moves: Moves },
  onCopied: (clusters: number) => void,
): Promise<void> {
  const { context, writeBack } = image;
  await setRefcounts(
    image,
    [...moves.counts].map(([start, to]) => ({ start, count: 1, from: 0, to })),
  );
  await writeBack.flushAll();
  const mover = new Mover(image, structure, survey, moves);
  await mover.copyClusters(onCopied);
  await mover.copyStreams();
  const drops = [...dropsOf(survey, moves)].sort(([a], [b]) => a - b);
  onCopied(drops.length - moves.clusters.size);
  await mover.changeTables(true);
  await context.meta.flush();
  await mover.changeTables(false);
  await mover.changeHeader();
  await context.meta.flush();
  const { references } = survey;
  // Its tables in memory name the new places: what they name is never freed.
  const moved = await open();
  await setRefcounts(
    moved,
    drops.map(([start, fewer]) => {
      const from = references.get(start);
      return { start, count: 1, from, to: from - fewer };
    }),
  );
  await moved.writeBack.flushAll();
}

class Mover {
  readonly #image: OpenImage;
  readonly #structure: Structure;
  readonly #survey: Survey;
  readonly #moves: Moves;

  constructor(image: OpenImage, structure: Structure, survey: Survey, moves: Moves) {
    this.#image = image;
    this.#structure = structure;
    this.#survey = survey;
    this.#moves = moves;
  }

  /** Those that stay one behind the other together. */
  async copyClusters(onCopied: (clusters: number) => void): Promise<void> {
    const { clusterBytes, uses } = this.#survey;
    const most = Math.max(1, COPY_BYTES / clusterBytes);
    const moves = [...this.#moves.clusters].sort(([a], [b]) => a - b);
    for (let at = 0; at < moves.length;) {
      const [from = 0, to = 0] = moves[at] ?? [];
      const goesOn = (count: number): boolean => {
        const [nextFrom = 0, nextTo = 0] = moves[at + count] ?? [];
        return nextFrom === from + count && nextTo === to + count && uses[nextFrom] === uses[from];
      };
      let count = 1;
      while (count < most && goesOn(count)) count++;
      await this.#copy(from, to, count, uses[from] === Use.data);
      at += count;
      onCopied(count);
    }
  }

  async #copy(from: number, to: number, count: number, isGuests: boolean): Promise<void> {
    const { context } = this.#image;
    const { clusterBytes } = this.#survey;
    const bytes = Buffer.alloc(count * clusterBytes);
    const { meta, encryption } = context;
    // Of LUKS the same bytes are others elsewhere.
    if (isGuests && encryption?.format === 'luks') {
      await encryption.read(meta, from * clusterBytes, 0, bytes);
      await encryption.write(meta, to * clusterBytes, 0, bytes);
      return;
    }
    await readPadded(meta, from * clusterBytes, bytes);
    if (isZero(bytes)) await meta.writeZeroes(to * clusterBytes, bytes.length, 0);
    else await meta.write(to * clusterBytes, bytes, 0);
  }

  async copyStreams(): Promise<void> {
    const { meta } = this.#image.context;
    for (const { stream, hostOffset } of this.#moves.streams.values()) {
      const bytes = Buffer.alloc(stream.lengthBytes);
      await readPadded(meta, stream.hostOffset, bytes);
      await meta.write(hostOffset, bytes, 0);
    }
  }

  /** Names the new places in tables that have moved themselves, where they are now, or in those that have not. */
  async changeTables(haveMoved: boolean): Promise<void> {
    const { meta } = this.#image.context;
    for await (const table of pointerTables(meta, this.#structure)) {
      const hostOffset = this.#placeOf(table.hostOffset);
      if ((hostOffset !== table.hostOffset) !== haveMoved) continue;
      const changed = this.#change(table);
      if (!changed) continue;
      const from = alignDown(changed.from, SECTOR_BYTES);
      await meta.write(hostOffset + from, table.bytes.subarray(from, changed.end), 0);
    }
  }

  /** The bytes that have changed, or undefined. */
  #change(table: PointerTable): { from: number; end: number } | undefined {
    const pointer: Pointer = { kind: 'none', hostOffset: 0, lengthBytes: 0 };
    let changed: { from: number; end: number } | undefined;
    for (let index = 0; index < table.entries; index++) {
      table.read(index, pointer);
      if (pointer.kind === 'none') continue;
      const place =
        pointer.kind === 'compressed'
          ? (this.#moves.streams.get(pointer.hostOffset)?.hostOffset ?? pointer.hostOffset)
          : this.#placeOf(pointer.hostOffset);
      if (place === pointer.hostOffset) continue;
      const at = table.write(index, place);
      const end = Math.min(table.bytes.length, alignDown(at, SECTOR_BYTES) + SECTOR_BYTES);
      changed = { from: changed?.from ?? at, end };
    }
    return changed;
  }

  /** Of what begins with a cluster. */
  #placeOf(hostOffset: number): number {
    const { clusterBytes } = this.#survey;
    const cluster = this.#moves.clusters.get(hostOffset / clusterBytes);
    return cluster === undefined ? hostOffset : cluster * clusterBytes;
  }

  async changeHeader(): Promise<void> {
    const { context } = this.#image;
    const { header, bitmaps } = this.#structure;
    const l1Offset = this.#placeOf(header.l1Offset);
    const snapshotsOffset = this.#placeOf(header.snapshotsOffset);
    if (l1Offset !== header.l1Offset || snapshotsOffset !== header.snapshotsOffset)
      await context.switchHeader((sector) => {
        writeU64(sector, FieldOffset.l1Offset, l1Offset);
        writeU64(sector, FieldOffset.snapshotsOffset, snapshotsOffset);
      });
    if (!bitmaps) return;
    const directoryOffset = this.#placeOf(bitmaps.directoryOffset);
    if (directoryOffset === bitmaps.directoryOffset) return;
    const data = encodeBitmapsExtension({ ...bitmaps, directoryOffset });
    const extensions = context.header.extensions.map((one) =>
      one.type === ExtensionType.bitmaps ? { type: one.type, data } : one,
    );
    await changeHeader(context, { extensions });
  }
}
