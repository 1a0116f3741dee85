import { AsyncMutex } from '../../base/async.js';
import type { ChildIo, DriverInstance, IoDriver } from '../../block/driver.js';
import { RangeLock } from '../../block/range-lock.js';
import { Flag, hasFlag, type IoRequest } from '../../block/request.js';
import type { PassedMemory } from '../../host/passing.js';
import { PassThrough } from '../pass-through/pass-through.js';
import { writeSameBytes } from '../pass-through/same-bytes.js';
import { entryBytes, EntryFlag, superblockBytes } from './format.js';

export interface LogPlace {
  readonly sectorBytes: number;
  /** How many there are already, and where the next one goes. */
  readonly entries: number;
  readonly end: number;
  /** So many entries more, and the superblock says so, if nothing was flushed before. */
  readonly updateInterval: number;
}

/** How far its log is. */
interface Memory {
  entries: number;
  toldEntries: number;
  end: number;
}

/**
 * Changes `file`, and keeps in `log` what was done, in an order that gives the same disk again. An entry is there before
 * its request is answered; what stands before the entry of a flush was done before the flush began.
 */
export class BlklogwritesNode extends PassThrough implements DriverInstance {
  override readonly requestAlignmentBytes: number;
  readonly #file: () => ChildIo;
  readonly #log: () => ChildIo;
  readonly #place: LogPlace;
  #entries: number;
  /** What the superblock says. */
  #toldEntries: number;
  #end: number;
  readonly #appending = new AsyncMutex();
  /** Changes of the same bytes are made and kept in one order. */
  readonly #ranges = new RangeLock();

  /** `memory`: of another process's, which has gone on from `place`. */
  constructor(file: () => ChildIo, log: () => ChildIo, place: LogPlace, memory?: PassedMemory) {
    super(file);
    this.#file = file;
    this.#log = log;
    this.#place = place;
    this.requestAlignmentBytes = place.sectorBytes;
    const { entries, toldEntries, end } = (memory?.data as Memory | undefined) ?? {
      ...{ entries: place.entries, toldEntries: place.entries, end: place.end },
    };
    this.#entries = entries;
    this.#toldEntries = toldEntries;
    this.#end = end;
  }

  get memory(): PassedMemory {
    const data: Memory = { entries: this.#entries, toldEntries: this.#toldEntries, end: this.#end };
    return { data, parts: [] };
  }

  override get io(): IoDriver {
    return this;
  }

  /** Nothing is changed without a wait for the log. */
  override tryWrite(): boolean {
    return false;
  }

  override async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    await writeSameBytes(this.#ranges, { request, from, lengthBytes, offset }, async (bytes) => {
      await this.#file().write(offset, bytes, flags);
      const fua = hasFlag(flags, Flag.fua) ? EntryFlag.fua : 0;
      await this.#append(offset, lengthBytes, fua, (at) => this.#log().write(at, bytes, Flag.none));
      if (fua !== 0) await this.#makeDurable();
    });
  }

  /** Kept as bytes. */
  override async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const release = await this.#ranges.lockExclusive(offset, lengthBytes);
    try {
      await this.#file().writeZeroes(offset, lengthBytes, flags);
      await this.#append(offset, lengthBytes, 0, (at) => this.#log().writeZeroes(at, lengthBytes, Flag.none));
    } finally {
      release();
    }
  }

  override async discard(offset: number, lengthBytes: number): Promise<void> {
    const release = await this.#ranges.lockExclusive(offset, lengthBytes);
    try {
      await this.#file().discard(offset, lengthBytes);
      await this.#append(offset, lengthBytes, EntryFlag.discard);
    } finally {
      release();
    }
  }

  /** No entry comes between what was done when the flush began and its own. */
  override async flush(): Promise<void> {
    await this.#appending.run(async () => {
      await this.#file().flush();
      await this.#appendNow(0, 0, EntryFlag.flush);
      await this.#writeSuperblock();
    });
    await this.#log().flush();
  }

  #append(
    offset: number,
    lengthBytes: number,
    flags: number,
    writeData?: (at: number) => Promise<void>,
  ): Promise<void> {
    return this.#appending.run(() => this.#appendNow(offset, lengthBytes, flags, writeData));
  }

  /** The place of one that fails is taken by the next. */
  async #appendNow(
    offset: number,
    lengthBytes: number,
    flags: number,
    writeData?: (at: number) => Promise<void>,
  ): Promise<void> {
    const { sectorBytes, updateInterval } = this.#place;
    const entry = { sector: offset / sectorBytes, sectors: lengthBytes / sectorBytes, flags };
    await this.#log().write(this.#end, entryBytes(entry, sectorBytes), Flag.none);
    await writeData?.(this.#end + sectorBytes);
    this.#end += sectorBytes + (writeData ? lengthBytes : 0);
    this.#entries++;
    if (this.#entries % updateInterval === 0) await this.#writeSuperblock();
  }

  async #makeDurable(): Promise<void> {
    await this.#appending.run(() => this.#writeSuperblock());
    await this.#log().flush();
  }

  async #writeSuperblock(): Promise<void> {
    const { sectorBytes } = this.#place;
    const entries = this.#entries;
    await this.#log().write(0, superblockBytes({ entries, sectorBytes }), Flag.none);
    this.#toldEntries = entries;
  }

  override async close(): Promise<void> {
    // One that was opened to be looked at has told nothing.
    if (this.#toldEntries !== this.#entries && this.#log().isWritable) await this.#makeDurable();
  }
}
