import { assert } from '../../base/assert.js';
import { alignDown, alignUp } from '../../base/align.js';
import { errnoError } from '../../base/error.js';
import { adler32, deflateRaw, inflateZlib } from '../../codec/index.js';
import type { ChildIo, MapDriver, Reservation } from '../../block/driver.js';
import type { Mapping } from '../../block/request.js';
import type { ComputeTask, HostCompute } from '../../host/compute.js';
import { type BlockTable, Place } from '../tables/block-map.js';
import type { EntryCache } from '../tables/entry-cache.js';
import { readBytes } from '../tables/read-bytes.js';
import { SECTOR_BYTES } from './sparse-header.js';

/** Before a grain: its first sector, and how many bytes of a zlib stream follow. */
const MARKER_BYTES = 12;
const ZLIB_HEADER = [0x78, 0x9c] as const;
const ZLIB_TRAILER_BYTES = 4;
const ZLIB = { windowBits: 15 };
const MOST_AT_ONCE = 8;

export interface CompressedOptions {
  readonly file: ChildIo;
  readonly cache: EntryCache;
  readonly table: BlockTable;
  readonly compute: HostCompute;
  readonly grainBytes: number;
  readonly hasMarkers: boolean;
  /** Behind everything in the file. */
  readonly end: number;
}

/** A stream-optimised extent: compressed grains one after the other. What is written becomes a grain at the end. */
export class CompressedGrains implements MapDriver {
  readonly clusterBytes: number;
  readonly unitBytes: number;
  readonly #o: CompressedOptions;
  #end: number;
  /** Grains that were written and are not linked yet, by their offset. */
  readonly #written = new Map<number, number>();

  constructor(options: CompressedOptions) {
    this.#o = options;
    this.clusterBytes = options.grainBytes;
    this.unitBytes = options.grainBytes;
    this.#end = alignUp(options.end, SECTOR_BYTES);
  }

  get events(): ChildIo {
    return this.#o.file;
  }

  get isMappingDurable(): boolean {
    return !this.#o.cache.isDirty;
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    const { table, file } = this.#o;
    const grain = this.clusterBytes;
    let index = Math.floor(offset / grain);
    const place = table.find(index);
    if (place === Place.unknown) return false;
    let length = Math.min(lengthBytes, grain - (offset % grain));
    while (length < lengthBytes) {
      const next = table.find(++index);
      if (place >= 0 ? next < 0 : next !== place) break;
      length += Math.min(grain, lengthBytes - length);
    }
    out.kind = place >= 0 ? 'data' : place === Place.zero ? 'zero' : 'backing';
    out.lengthBytes = length;
    out.child = place >= 0 ? file : undefined;
    out.hostOffset = place >= 0 ? place : -1;
    out.plain = false;
    out.writable = false;
    return true;
  }

  async map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    while (!this.tryMap(offset, lengthBytes, out))
      await this.#o.table.load(Math.floor(offset / this.clusterBytes));
  }

  /** Several grains at a time. Errors: invalid for data that is broken. */
  async readSpecial(_mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    let running: Array<Promise<void>> = [];
    for (let done = 0; done < buffer.length;) {
      const at = offset + done;
      const length = Math.min(buffer.length - done, this.clusterBytes - (at % this.clusterBytes));
      running.push(this.#readGrain(at, buffer.subarray(done, done + length)));
      done += length;
      if (running.length < MOST_AT_ONCE && done < buffer.length) continue;
      const settled = await Promise.allSettled(running);
      for (const result of settled) if (result.status === 'rejected') throw result.reason;
      running = [];
    }
  }

  /** A part of one. */
  async #readGrain(offset: number, part: Uint8Array): Promise<void> {
    const { table, file, hasMarkers } = this.#o;
    const grain = this.clusterBytes;
    const index = Math.floor(offset / grain);
    while (table.find(index) === Place.unknown) await table.load(index);
    const place = table.find(index);
    const marker = hasMarkers ? await readBytes(file, place, MARKER_BYTES) : undefined;
    const bytes = marker ? marker.readUInt32LE(8) : 2 * grain;
    if (bytes <= ZLIB_HEADER.length || bytes > 2 * grain) throw errnoError('EINVAL');
    const stream = await readBytes(file, place + (marker ? MARKER_BYTES : 0), bytes);
    const output = Buffer.alloc(grain);
    const filled = await this.#run({
      function: inflateZlib,
      input: stream,
      output,
      parameters: undefined,
    });
    const from = offset % grain;
    if (from + part.length > filled) throw errnoError('EINVAL');
    part.set(output.subarray(from, from + part.length));
  }

  async #run<P>(task: ComputeTask<P>): Promise<number> {
    const { compute } = this.#o;
    const now = compute.tryRun(task);
    return now >= 0 ? now : await compute.run(task, { user: this });
  }

  /** One grain: where it comes to is known when it is compressed. */
  async reserve(offset: number, _lengthBytes: number): Promise<Reservation> {
    const { table, file } = this.#o;
    const grain = this.clusterBytes;
    const index = Math.floor(offset / grain);
    while (!table.isReady(index) || table.find(index) === Place.unknown) await table.prepare(index);
    const start = alignDown(offset, grain);
    const isKnownZero = table.find(index) === Place.zero;
    return {
      offset: start,
      lengthBytes: grain,
      child: file,
      hostOffset: this.#end,
      plain: false,
      readsZero: false,
      before: isKnownZero ? 'zero' : 'mixed',
      link: () => {
        const place = this.#written.get(start);
        assert(place !== undefined, 'a grain is written before it is linked');
        this.#written.delete(start);
        table.set(index, place);
      },
      abort: () => void this.#written.delete(start),
    };
  }

  async writeSpecial(
    _child: ChildIo,
    _hostOffset: number,
    offset: number,
    buffer: Uint8Array,
  ): Promise<void> {
    const stream = await this.#compress(buffer);
    const head = Buffer.alloc(this.#o.hasMarkers ? MARKER_BYTES : 0);
    if (this.#o.hasMarkers) {
      head.writeBigUInt64LE(BigInt(offset / SECTOR_BYTES), 0);
      head.writeUInt32LE(stream.length, 8);
    }
    const bytes = Buffer.concat([head, stream], alignUp(head.length + stream.length, SECTOR_BYTES));
    const place = this.#end;
    this.#end += bytes.length;
    await this.#o.file.write(place, bytes, 0);
    this.#written.set(offset, place);
  }

  /** A zlib stream (RFC 1950). */
  async #compress(input: Uint8Array): Promise<Buffer> {
    const output = Buffer.alloc(2 * this.clusterBytes);
    const length = await this.#run({ function: deflateRaw, input, output, parameters: ZLIB });
    assert(length > 0, 'no grain takes twice its space');
    const trailer = Buffer.alloc(ZLIB_TRAILER_BYTES);
    trailer.writeUInt32BE(adler32(input));
    return Buffer.concat([Buffer.from(ZLIB_HEADER), output.subarray(0, length), trailer]);
  }

  async writeCompressed(offset: number, bytes: Uint8Array): Promise<boolean> {
    const reservation = await this.reserve(offset, bytes.length);
    try {
      await this.writeSpecial(reservation.child, reservation.hostOffset, offset, bytes);
    } catch (error) {
      reservation.abort();
      throw error;
    }
    reservation.link();
    return true;
  }

  zeroClusters(): Promise<void> {
    return Promise.reject(errnoError('ENOTSUP'));
  }

  /** Compressed space is not given back. */
  async discardClusters(): Promise<void> {}
}
