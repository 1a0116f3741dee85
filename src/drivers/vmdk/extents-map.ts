import { alignDown, alignUp } from '../../base/align.js';
import { errnoError } from '../../base/error.js';
import type { ChildIo, MapDriver, Reservation } from '../../block/driver.js';
import { type Mapping, newMapping, placeOf } from '../../block/request.js';
import type { Extent } from './extent.js';

interface PlacedExtent extends Extent {
  readonly start: number;
  readonly map: MapDriver;
}

export interface ExtentsOptions {
  readonly extents: readonly Extent[];
  readonly events: ChildIo;
  /** Before the disk is changed for the first time. */
  begin(): Promise<void>;
  readonly hasBegun: () => boolean;
  /** Before what is not in the image is read from the parent. Errors: invalid where it is not the right one. */
  checkParent(): void;
}

/** Extents, one after the other, are the disk. */
export class ExtentsMap implements MapDriver {
  readonly clusterBytes: number;
  readonly unitBytes: number;
  readonly #o: ExtentsOptions;
  readonly #extents: readonly PlacedExtent[];

  constructor(options: ExtentsOptions) {
    this.#o = options;
    let start = 0;
    this.#extents = options.extents.map((extent) => {
      const { map } = extent;
      if (!map) throw errnoError('ENOTSUP');
      const placed = { ...extent, map, start };
      start += extent.lengthBytes;
      return placed;
    });
    const unit = Math.max(512, ...options.extents.map(({ unitBytes }) => unitBytes));
    const isAligned = this.#extents.every(
      (extent) => extent.start % unit === 0 && unit % extent.unitBytes === 0,
    );
    // Of grains that lie across units of the disk, all changes go one at a time.
    this.clusterBytes = isAligned ? unit : Math.max(512, alignUp(start, 512));
    this.unitBytes = isAligned ? unit : 512;
  }

  get events(): ChildIo {
    return this.#o.events;
  }

  get isPreallocated(): boolean {
    return this.#extents.every(({ map }) => map.isPreallocated === true);
  }

  get isMappingDurable(): boolean {
    return this.#o.hasBegun() && this.#extents.every(({ map }) => map.isMappingDurable === true);
  }

  get hasSpecial(): boolean {
    return this.#extents.some(({ map }) => map.readSpecial !== undefined);
  }

  get takesUncompressed(): boolean {
    return this.#extents.every(({ map }) => map.writeCompressed === undefined);
  }

  #at(offset: number): PlacedExtent {
    const extents = this.#extents;
    let [low, high] = [0, extents.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((extents[middle]?.start ?? 0) <= offset) low = middle;
      else high = middle - 1;
    }
    const extent = extents[low];
    if (!extent) throw errnoError('EIO');
    return extent;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const { map, start, lengthBytes: extentBytes } = this.#at(offset);
    const inside = Math.min(lengthBytes, start + extentBytes - offset);
    if (!map.tryMap(offset - start, inside, out)) return false;
    if (!this.#o.hasBegun()) out.writable = false;
    if (out.kind === 'backing') this.#o.checkParent();
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    const { map, start, lengthBytes: extentBytes } = this.#at(offset);
    await map.map(offset - start, Math.min(lengthBytes, start + extentBytes - offset), out);
    if (!this.#o.hasBegun()) out.writable = false;
    if (out.kind === 'backing') this.#o.checkParent();
  }

  async readSpecial(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    const { map, start } = this.#at(offset);
    await map.readSpecial?.(mapping, offset - start, buffer);
  }

  async writeSpecial(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void> {
    const { map, start } = this.#at(offset);
    await map.writeSpecial?.(child, hostOffset, offset - start, buffer);
  }

  async writeCompressed(offset: number, bytes: Uint8Array): Promise<boolean> {
    const { map, start } = this.#at(offset);
    if (!map.writeCompressed) throw errnoError('ENOTSUP');
    await this.#o.begin();
    return map.writeCompressed(offset - start, bytes);
  }

  tryReserve(offset: number, lengthBytes: number): Reservation | undefined {
    if (!this.#o.hasBegun()) return undefined;
    const { map, start, lengthBytes: extentBytes } = this.#at(offset);
    const inside = Math.min(lengthBytes, start + extentBytes - offset);
    const reservation = map.tryReserve?.(offset - start, inside);
    return reservation && moved(reservation, start);
  }

  async reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    await this.#o.begin();
    const extent = this.#at(offset);
    const { map, start } = extent;
    const inside = Math.min(lengthBytes, start + extent.lengthBytes - offset);
    const mapping = newMapping();
    await map.map(offset - start, inside, mapping);
    if (mapping.kind === 'data' && mapping.writable) return this.#inPlace(offset, mapping, extent);
    return moved(await map.reserve(offset - start, inside), start);
  }

  /** Data that could not be written before the first change had begun. */
  #inPlace(offset: number, mapping: Mapping, { start, unitBytes }: PlacedExtent): Reservation {
    const before = (offset - start) % unitBytes;
    const from = offset - before;
    const length = alignUp(before + Math.min(mapping.lengthBytes, unitBytes - before), unitBytes);
    return {
      offset: from,
      lengthBytes: length,
      child: placeOf(mapping),
      hostOffset: mapping.hostOffset - before,
      plain: true,
      readsZero: false,
      before: 'mixed',
      link: () => undefined,
      abort: () => undefined,
    };
  }

  async zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    await this.#o.begin();
    await this.#each(offset, lengthBytes, ({ map, unitBytes, lengthBytes: extentBytes }, at, length) => {
      // Only whole grains are zero by themselves.
      const isWhole = at % unitBytes === 0 && (length % unitBytes === 0 || at + length === extentBytes);
      if (!isWhole) throw errnoError('ENOTSUP');
      return map.zeroClusters(at, length, flags);
    });
  }

  async discardClusters(offset: number, lengthBytes: number): Promise<void> {
    await this.#o.begin();
    await this.#each(offset, lengthBytes, ({ map, unitBytes }, at, length) => {
      const from = alignUp(at, unitBytes);
      const end = alignDown(at + length, unitBytes);
      return end > from ? map.discardClusters(from, end - from) : Promise.resolve();
    });
  }

  async #each(
    offset: number,
    lengthBytes: number,
    body: (extent: PlacedExtent, at: number, lengthBytes: number) => Promise<void>,
  ): Promise<void> {
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const extent = this.#at(at);
      const { start, lengthBytes: extentBytes } = extent;
      const length = Math.min(end - at, start + extentBytes - at);
      await body(extent, at - start, length);
      at += length;
    }
  }
}

/** The same of the disk. */
function moved(reservation: Reservation, start: number): Reservation {
  return start === 0 ? reservation : { ...reservation, offset: reservation.offset + start };
}
