import { isZero } from '../../base/zero.js';
import { MiB } from '../../base/limits.js';
import type { ChainStatus } from '../../block/chain-status.js';
import type { BlockBackend } from '../../block/backend.js';
import { requestError } from '../io/session.js';
import { cacheOptions } from '../io/cache.js';
import { Arguments, options } from './arguments.js';
import type { Progress } from './progress.js';
import { type Tool, ToolFailure, UsageError } from './tool.js';

const SECTOR_BYTES = 512;
const PIECE_BYTES = 2 * MiB;
/** Exit status for trouble; 1 says that the images differ. */
const TROUBLE = 2;
const STATUS_FAILED = 3;
const READ_FAILED = 4;

interface Extent {
  lengthBytes: number;
  zero: boolean;
  /** Everything that strict mode wants alike. */
  signature: string;
}

/** compare [-T CACHE] [-f FMT] [-F FMT] [-p] [-q] [-s] [-U] [--image-opts] FILE1 FILE2 */
export async function compareCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'F:', 'T:', 'p', 'q', 's', 'U|force-share', '|image-opts');
  const args = new Arguments(words, taken);
  const [name1, name2] = args.operands;
  if (name1 === undefined || name2 === undefined || args.operands.length !== 2)
    throw new UsageError('Expecting two image file names');
  const progress = tool.progress(args.has('p'));
  const source = args.value('T') ?? 'writeback';
  const cache = cacheOptions(source);
  if (!cache) throw new ToolFailure(`Invalid source cache option: ${source}`, { status: TROUBLE });
  const use = {
    forceShare: args.has('force-share'),
    imageOpts: args.has('image-opts'),
    failure: TROUBLE,
    cache: cache.options,
  };
  const a = await tool.open(name1, { format: args.value('f'), ...use });
  const b = await tool.open(name2, { format: args.value('F'), ...use });
  const comparison = new Comparison(
    tool,
    { a, b, names: [name1, name2] },
    {
      strict: args.has('s'),
      quiet: args.has('q'),
      progress: progress.begin(),
    },
  );
  return comparison.run();
}

class Comparison {
  readonly #tool: Tool;
  readonly #images: { a: BlockBackend; b: BlockBackend; names: [string, string] };
  readonly #options: { strict: boolean; quiet: boolean; progress: Progress };
  readonly #buffers: readonly [Buffer, Buffer];

  constructor(
    tool: Tool,
    images: { a: BlockBackend; b: BlockBackend; names: [string, string] },
    choices: { strict: boolean; quiet: boolean; progress: Progress },
  ) {
    this.#tool = tool;
    this.#images = images;
    this.#options = choices;
    const { files } = tool.host;
    this.#buffers = [files.buffer(PIECE_BYTES), files.buffer(PIECE_BYTES)];
  }

  /** Answers the exit status. */
  async run(): Promise<number> {
    const { a, b } = this.#images;
    const { progress, strict } = this.#options;
    const sizesDiffer = a.lengthBytes !== b.lengthBytes;
    const difference =
      strict && sizesDiffer ? 'Strict mode: Image size mismatch!' : await this.#contents(sizesDiffer);
    if (difference === undefined) progress.complete();
    this.#say(difference ?? 'Images are identical.');
    progress.finish();
    return difference === undefined ? 0 : 1;
  }

  #say(text: string): void {
    if (!this.#options.quiet) this.#tool.out.print(`${text}\n`);
  }

  /** What differs; undefined when nothing does. */
  async #contents(sizesDiffer: boolean): Promise<string | undefined> {
    const { a, b } = this.#images;
    const common = Math.min(a.lengthBytes, b.lengthBytes);
    const total = Math.max(a.lengthBytes, b.lengthBytes);
    for (let at = 0; at < common;) {
      const [one, two] = [await this.#extentAt(a, at), await this.#extentAt(b, at)];
      if (this.#options.strict && one.signature !== two.signature)
        return `Strict mode: Offset ${at} block status mismatch!`;
      const length = Math.min(one.lengthBytes, two.lengthBytes, common - at);
      const mismatch = await this.#stretch(at, length, one.zero, two.zero);
      if (mismatch >= 0) return `Content mismatch at offset ${mismatch}!`;
      at += length;
      this.#options.progress.update(at, total);
    }
    if (!sizesDiffer) return undefined;
    this.#say('Warning: Image size mismatch!');
    const longer = a.lengthBytes > b.lengthBytes ? a : b;
    for (let at = common; at < total;) {
      const extent = await this.#extentAt(longer, at);
      const mismatch = extent.zero ? -1 : await this.#notZero(longer, at, extent.lengthBytes);
      if (mismatch >= 0) return `Content mismatch at offset ${mismatch}!`;
      at += extent.lengthBytes;
      this.#options.progress.update(at, total);
    }
    return undefined;
  }

  /** Where the first sector that differs begins; -1 when none does. */
  async #stretch(offset: number, lengthBytes: number, zero1: boolean, zero2: boolean): Promise<number> {
    const { a, b } = this.#images;
    if (zero1 && zero2) return -1;
    if (zero1) return this.#notZero(b, offset, lengthBytes);
    if (zero2) return this.#notZero(a, offset, lengthBytes);
    for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
      const size = Math.min(PIECE_BYTES, lengthBytes - done);
      const one = await this.#read(a, offset + done, size, 0);
      const two = await this.#read(b, offset + done, size, 1);
      if (one.equals(two)) continue;
      return (
        offset + done + firstSector(size, (at, end) => !one.subarray(at, end).equals(two.subarray(at, end)))
      );
    }
    return -1;
  }

  async #notZero(image: BlockBackend, offset: number, lengthBytes: number): Promise<number> {
    for (let done = 0; done < lengthBytes; done += PIECE_BYTES) {
      const size = Math.min(PIECE_BYTES, lengthBytes - done);
      const buffer = await this.#read(image, offset + done, size, 0);
      if (isZero(buffer)) continue;
      return offset + done + firstSector(size, (at, end) => !isZero(buffer.subarray(at, end)));
    }
    return -1;
  }

  async #extentAt(image: BlockBackend, offset: number): Promise<Extent> {
    const left = image.lengthBytes - offset;
    const status = await this.#statusAt(image, offset, left);
    const { lengthBytes, allocated, zero, data, hostOffset } = status;
    const isLast = lengthBytes === left;
    const signature = [allocated, zero, data, hostOffset !== undefined, isLast].join();
    return { lengthBytes, zero, signature };
  }

  async #statusAt(image: BlockBackend, offset: number, lengthBytes: number): Promise<ChainStatus> {
    try {
      return await image.node.statusThroughChain(offset, lengthBytes);
    } catch {
      const text = `Sector allocation test failed for ${this.#nameOf(image)}`;
      throw new ToolFailure(text, { status: STATUS_FAILED });
    }
  }

  #nameOf(image: BlockBackend): string {
    return this.#images.names[image === this.#images.a ? 0 : 1];
  }

  async #read(image: BlockBackend, offset: number, lengthBytes: number, which: 0 | 1): Promise<Buffer> {
    const buffer = this.#buffers[which].subarray(0, lengthBytes);
    try {
      if (!image.tryRead(offset, buffer)) await image.read(offset, buffer);
      return buffer;
    } catch (error) {
      const text = `Error while reading offset ${offset} of ${this.#nameOf(image)}: ${requestError(error)}`;
      throw new ToolFailure(text, { status: READ_FAILED });
    }
  }
}

function firstSector(size: number, differs: (from: number, to: number) => boolean): number {
  for (let at = 0; at < size; at += SECTOR_BYTES) if (differs(at, at + SECTOR_BYTES)) return at;
  return size;
}
