import { alignUp } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { requestFailure } from './request-failure.js';

const SECTOR_BYTES = 512;

/** A byte of the whole, in its image. */
export interface SourcePlace {
  image: BlockBackend;
  offset: number;
  /** To the end of the image. */
  leftBytes: number;
}

/** What of a source could not be read; zeroes take its place. */
export type OnLost = (text: string) => void;

/** Images one behind the other, read as one. Without `onLost` what cannot be read is an error; see requestFailure. */
export class SourceImages {
  readonly images: readonly BlockBackend[];
  readonly lengthBytes: number;
  readonly #onLost: OnLost | undefined;

  constructor(images: readonly BlockBackend[], onLost?: OnLost) {
    this.images = images;
    this.lengthBytes = images.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    this.#onLost = onLost;
  }

  at(offset: number): SourcePlace {
    let start = 0;
    for (const image of this.images) {
      const end = start + image.lengthBytes;
      if (offset < end) return { image, offset: offset - start, leftBytes: end - offset };
      start = end;
    }
    assert(false, 'a place within the images');
  }

  async read(offset: number, buffer: Buffer): Promise<void> {
    for (let done = 0; done < buffer.length;) {
      const { image, offset: at, leftBytes } = this.at(offset + done);
      const part = buffer.subarray(done, done + leftBytes);
      await this.#readPart(image, at, offset + done, part);
      done += part.length;
    }
  }

  async #readPart(image: BlockBackend, at: number, offset: number, buffer: Buffer): Promise<void> {
    try {
      if (!image.tryRead(at, buffer)) await image.read(at, buffer);
    } catch (error) {
      if (!this.#onLost || !(error instanceof BlockError))
        throw requestFailure(`error while reading at byte ${offset}`, error);
      await this.#salvage(image, at, offset, buffer, error);
    }
  }

  /** Halves, down to sectors: all that can be read is. */
  async #salvage(
    image: BlockBackend,
    at: number,
    offset: number,
    buffer: Buffer,
    error: BlockError,
  ): Promise<void> {
    if (buffer.length <= SECTOR_BYTES) {
      buffer.fill(0);
      this.#onLost?.(`error while reading offset ${offset}: ${errnoText(errnoOf(error))}`);
      return;
    }
    const half = alignUp(buffer.length / 2, SECTOR_BYTES);
    await this.#readPart(image, at, offset, buffer.subarray(0, half));
    await this.#readPart(image, at + half, offset + half, buffer.subarray(half));
  }

  /**
   * What the status of a stretch is, by `ask`, which is asked for less and less while it fails; undefined: it cannot be
   * told even for the first sector.
   */
  async status<T>(place: SourcePlace, ask: (lengthBytes: number) => Promise<T> | T): Promise<T | undefined> {
    for (let length = place.leftBytes; ; length = alignUp(length / 2, SECTOR_BYTES)) {
      try {
        return await ask(length);
      } catch (error) {
        const what = `error while reading block status at offset ${place.offset}`;
        const failure = requestFailure(what, error);
        if (!this.#onLost) throw failure;
        if (length > SECTOR_BYTES) continue;
        this.#onLost(failure.message);
        return undefined;
      }
    }
  }
}
