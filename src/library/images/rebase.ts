import { MiB } from '../../base/limits.js';
import { isZero } from '../../base/zero.js';
import type { BlockBackend } from '../../block/backend.js';
import type { Node } from '../../block/node.js';
import { Flag } from '../../block/request.js';
import { ZeroTarget } from '../../block/zero-target.js';
import { layerAbove } from '../../jobs/plans/nodes.js';
import { NO_PROGRESS, type OnProgress } from './progress.js';
import { requestFailure } from './request-failure.js';

const SECTOR_BYTES = 512;
const PIECE_BYTES = 2 * MiB;

/** Of a chain as it is and as it is to be: both are read. */
export interface RebaseSides {
  /** The image, to be written. */
  overlay: BlockBackend;
  /** What it shows where it holds nothing itself; undefined: zeroes. */
  oldBacking: BlockBackend | undefined;
  newBacking: BlockBackend | undefined;
}

export interface RebaseOptions {
  /** Memory to read into; see HostFiles.buffer. */
  buffer: (lengthBytes: number) => Buffer;
  onProgress?: OnProgress;
  signal?: AbortSignal | undefined;
}

/**
 * Puts into an image what it shows of its old backing file and would not show of the new one; durable on return, so that
 * it may name the new one then. Until it does, it shows what it did. Errors: see requestFailure.
 */
export async function keepContent(sides: RebaseSides, options: RebaseOptions): Promise<void> {
  await new Rebase(sides, options).run();
}

class Rebase {
  readonly #sides: RebaseSides;
  readonly #options: RebaseOptions;
  readonly #old: Buffer;
  readonly #new: Buffer;
  readonly #zeroes: ZeroTarget;
  /** What of the old chain is above the new backing file, where that is part of it: elsewhere nothing changes. */
  readonly #lowest: Node | undefined;

  constructor(sides: RebaseSides, options: RebaseOptions) {
    this.#sides = sides;
    this.#options = options;
    this.#old = options.buffer(PIECE_BYTES);
    this.#new = options.buffer(PIECE_BYTES);
    const { overlay, oldBacking, newBacking } = sides;
    this.#zeroes = new ZeroTarget(overlay, { unmap: true, believesStatus: false });
    const isBelow = oldBacking && newBacking && isInChain(oldBacking.node, newBacking.node);
    this.#lowest = isBelow ? layerAbove(oldBacking.node, newBacking.node) : undefined;
  }

  async run(): Promise<void> {
    const { overlay, oldBacking, newBacking } = this.#sides;
    const { onProgress = NO_PROGRESS, signal } = this.#options;
    const end = overlay.lengthBytes;
    const isSame =
      oldBacking && newBacking && oldBacking.node.skipFilters() === newBacking.node.skipFilters();
    for (let at = 0; at < end && isSame !== true;) {
      signal?.throwIfAborted();
      const length = await this.#step(at, Math.min(PIECE_BYTES, end - at));
      at += length;
      onProgress(at, end);
    }
    await overlay.flush();
  }

  /** Answers how much is as it should be. */
  async #step(offset: number, lengthBytes: number): Promise<number> {
    const { overlay, oldBacking, newBacking } = this.#sides;
    const own = await overlay.node.skipFilters().io.status(offset, lengthBytes);
    if (own.allocated) return own.lengthBytes;
    let length = own.lengthBytes;
    if (this.#lowest && oldBacking && offset < oldBacking.lengthBytes) {
      const most = Math.min(length, oldBacking.lengthBytes - offset);
      const above = await oldBacking.node.statusThroughChain(offset, most, this.#lowest);
      length = above.lengthBytes;
      if (!above.allocated) return length;
    }
    const [was, isToBe] = [
      await content(oldBacking, offset, this.#old.subarray(0, length)),
      await content(newBacking, offset, this.#new.subarray(0, length)),
    ];
    await this.#writeDifferences(offset, was, isToBe);
    return length;
  }

  async #writeDifferences(offset: number, was: Buffer, isToBe: Buffer): Promise<void> {
    if (was.equals(isToBe)) return;
    const differsAt = (at: number): boolean =>
      !was.subarray(at, at + SECTOR_BYTES).equals(isToBe.subarray(at, at + SECTOR_BYTES));
    for (let from = 0; from < was.length;) {
      const differs = differsAt(from);
      let to = from + SECTOR_BYTES;
      while (to < was.length && differsAt(to) === differs) to += SECTOR_BYTES;
      if (differs) await this.#write(offset + from, was.subarray(from, to));
      from = to;
    }
  }

  async #write(offset: number, bytes: Buffer): Promise<void> {
    const { overlay } = this.#sides;
    try {
      if (isZero(bytes)) await this.#zeroes.write(offset, bytes.length);
      else if (!overlay.tryWrite(offset, bytes, Flag.none)) await overlay.write(offset, bytes);
    } catch (error) {
      throw requestFailure('Error while writing to COW image', error);
    }
  }
}

function isInChain(top: Node, node: Node): boolean {
  for (let at: Node | undefined = top.backingNode(); at; at = at.backingNode())
    if (at === node.skipFilters()) return true;
  return false;
}

/** Beyond its end, or where there is none, zeroes. */
async function content(image: BlockBackend | undefined, offset: number, buffer: Buffer): Promise<Buffer> {
  const inside = image ? Math.max(0, Math.min(buffer.length, image.lengthBytes - offset)) : 0;
  buffer.fill(0, inside);
  if (image && inside > 0) {
    const bytes = buffer.subarray(0, inside);
    try {
      if (!image.tryRead(offset, bytes)) await image.read(offset, bytes);
    } catch (error) {
      throw requestFailure('error while reading from backing file', error);
    }
  }
  return buffer;
}
