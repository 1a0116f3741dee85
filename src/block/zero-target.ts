import { isUnsupported } from '../base/error.js';
import { GiB, MiB } from '../base/limits.js';
import type { BlockBackend } from './backend.js';
import type { ChainStatus } from './chain-status.js';
import { KnownZeroes } from './known-zeroes.js';
import type { Node } from './node.js';
import { protocolOf } from './protocol-below.js';
import { Flag } from './request.js';

/** What is shorter is written: that costs no more than to find out. */
const PROVED_BYTES = MiB;
/** So much ahead a peer is asked: its answer is one stretch, and costs it the same. */
const ASKED_BYTES = GiB;

export interface ZeroOptions {
  /** Space may be given back. */
  unmap: boolean;
  /** What reads as zeroes now will do so: false where the target is to get a backing file. */
  believesStatus: boolean;
}

/** A first part of a stretch that is alike. */
interface FirstPart {
  /** It reads as zeroes, whatever becomes of the images below the target. */
  readonly zero: boolean;
  /** The target's own layer has something there; else nothing is below it either. */
  readonly isOwn: boolean;
  readonly lengthBytes: number;
}

/**
 * Makes stretches of a target read as zeroes with the least that does it for certain: nothing where its block status says
 * so, zeroing that costs no data, a discard that its block status confirms, and else zeroes that are written. What is read
 * back in samples would prove nothing of the rest, so nothing is believed for that. One at a time for a target, which tells it
 * of its changes.
 */
export class ZeroTarget {
  readonly #target: BlockBackend;
  readonly #flags: number;
  /** Neither has been refused yet. */
  #zeroesFast = true;
  #discards: boolean;
  readonly #believesStatus: boolean;
  readonly #known = new KnownZeroes();

  constructor(target: BlockBackend, { unmap, believesStatus }: ZeroOptions) {
    this.#target = target;
    this.#flags = unmap ? Flag.mayUnmap : Flag.none;
    this.#discards = unmap && believesStatus;
    this.#believesStatus = believesStatus;
    target.changes = (offset, lengthBytes) => this.#known.changes(offset, lengthBytes);
  }

  /** A peer has said that all of a stretch is zeroes, and nothing was changed there since. */
  isKnown(offset: number, lengthBytes: number): boolean {
    const connection = protocolOf(this.#target.node)?.connection;
    return connection !== undefined && this.#known.covers(offset, lengthBytes, connection);
  }

  /** How long a first part of a stretch is zeroes already, or is not. Status is advice. */
  async first(offset: number, lengthBytes: number): Promise<FirstPart> {
    if (this.isKnown(offset, lengthBytes)) return { zero: true, isOwn: true, lengthBytes };
    const { node } = this.#target;
    const connection = this.#believesStatus ? protocolOf(node)?.connection : undefined;
    const ahead = connection === undefined ? 0 : Math.min(ASKED_BYTES, node.lengthBytes - offset);
    const asked = Math.max(ahead, lengthBytes);
    const status = await this.#target.during(() => statusOf(node, offset, asked));
    if (!status) return { zero: false, isOwn: true, lengthBytes };
    const zero = isZeroForGood(this.#target.node, status);
    if (connection !== undefined && zero && status.allocated)
      this.#known.learn(offset, status.lengthBytes, connection);
    return { zero, isOwn: status.allocated, lengthBytes: Math.min(status.lengthBytes, lengthBytes) };
  }

  /**
   * Makes all of a stretch zeroes that are not there yet. Where the target has nothing, and nothing is below it, it is to
   * say so itself, if no data has to be written for that. Errors: of the target.
   */
  async fill(offset: number, lengthBytes: number): Promise<void> {
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const part = await this.first(at, end - at);
      if (!part.zero) await this.write(at, part.lengthBytes);
      else if (!part.isOwn) await this.writeFast(at, part.lengthBytes);
      at += part.lengthBytes;
    }
  }

  /** Makes a stretch zeroes whose content is not known. Errors: of the target. */
  async write(offset: number, lengthBytes: number): Promise<void> {
    if (lengthBytes < PROVED_BYTES || !this.#discards || leavesOutBacking(this.#target.node))
      return this.#writePlainly(offset, lengthBytes);
    if (await this.writeFast(offset, lengthBytes)) return;
    if (this.#target.node.modes.discard !== 'unmap') return this.#writePlainly(offset, lengthBytes);
    await this.#target.discard(offset, lengthBytes);
    const end = offset + lengthBytes;
    for (let at = offset; at < end;) {
      const part = await this.first(at, end - at);
      if (!part.zero) await this.#writePlainly(at, part.lengthBytes);
      // One that leaves more than its ends as it was is not asked again.
      if (!part.zero && part.lengthBytes >= PROVED_BYTES) this.#discards = false;
      at += part.lengthBytes;
    }
  }

  async #writePlainly(offset: number, lengthBytes: number): Promise<void> {
    await this.#target.writeZeroes(offset, lengthBytes, this.#flags);
    const { node } = this.#target;
    const mayGetBacking = !this.#believesStatus && node.skipFilters().driver.options.backing;
    if (mayGetBacking || leavesOutBacking(node)) await this.#writeWhatIsNotOwn(offset, offset + lengthBytes);
  }

  /** A format may have nothing where nothing is below it (qcow2 of version 2): what comes below it would show. */
  async #writeWhatIsNotOwn(offset: number, end: number): Promise<void> {
    const { node } = this.#target;
    for (let at = offset; at < end;) {
      const status = await this.#target.during(() => node.statusThroughChain(at, end - at));
      const isOwn = status.allocated && status.depth === 0;
      const length = Math.min(status.lengthBytes, end - at, isOwn ? Infinity : PROVED_BYTES);
      if (!isOwn) await this.#target.write(at, Buffer.alloc(length), Flag.none);
      at += length;
    }
  }

  /** The same with no data written for it; false: the target cannot. Errors: of the target. */
  async writeFast(offset: number, lengthBytes: number): Promise<boolean> {
    if (!this.#zeroesFast) return false;
    try {
      await this.#target.writeZeroes(offset, lengthBytes, this.#flags | Flag.noFallback);
      return true;
    } catch (error) {
      if (!isUnsupported(error)) throw error;
      this.#zeroesFast = false;
      return false;
    }
  }
}

/**
 * Whether a target with that status reads as zeroes whatever becomes of the images below it: one may be the very disk that
 * is copied, which the guest goes on to write, or was left out for now.
 */
export function isZeroForGood(target: Node, { zero, depth, allocated }: ChainStatus): boolean {
  return zero && depth === 0 && (allocated || !leavesOutBacking(target));
}

/** Opened without the backing file that it names, which shows through when the image is opened by its name. */
function leavesOutBacking(target: Node): boolean {
  for (let at: Node | undefined = target; at; at = at.filtered?.node)
    if (at.backingFilename !== undefined && !at.children.has('backing')) return true;
  return false;
}

async function statusOf(node: Node, offset: number, lengthBytes: number): Promise<ChainStatus | undefined> {
  try {
    return await node.statusThroughChain(offset, lengthBytes);
  } catch {
    return undefined;
  }
}

/** Whether an image that was just made reads as zeroes; an export keeps what it held, whatever is created in it. */
export function readsZeroWhenNew({ instance, filtered }: Node): boolean {
  return instance.readsZeroWhenNew === true && (filtered === undefined || readsZeroWhenNew(filtered.node));
}
