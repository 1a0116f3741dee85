import type { BlockBackend } from '../../block/backend.js';
import { Notifier } from '../../base/async.js';
import { fixed, parsePattern } from '../io/numbers.js';
import { requestError } from '../io/session.js';
import { type CacheMode, cacheOptions } from '../io/cache.js';
import { Arguments, options, sizeOf } from './arguments.js';
import { type Tool, ToolFailure } from './tool.js';

const MAX_INT = 2 ** 31 - 1;
/** How many requests are made before timers and sockets have their turn. */
const REQUESTS_PER_TURN = 1024;

interface Load {
  count: number;
  depth: number;
  bufferBytes: number;
  stepBytes: number;
  offset: number;
  isWrite: boolean;
  pattern: number;
  flushInterval: number;
  /** Requests wait until the flush is done. */
  drains: boolean;
}

/**
 * bench [-c COUNT] [-d DEPTH] [-f FMT] [--flush-interval=N] [-i AIO] [-n] [--no-drain] [-o OFFSET] [--pattern=BYTE] [-q]
 * [-s SIZE] [-S STEP] [-t CACHE] [-w] [-U] [--image-opts] FILE
 */
export async function benchCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    ...['c:', 'd:', 'f:', 'i:', 'n', 'o:', 'q', 's:', 'S:', 't:', 'w', 'U|force-share', '|image-opts'],
    ...['|flush-interval:', '|no-drain', '|pattern:'],
  );
  const args = new Arguments(words, taken, {
    ...Object.fromEntries(
      Object.entries(NUMBERS).map(([name, number]) => [name, (text) => wholeNumber(text, number)]),
    ),
    i: aioOf,
    o: (text) => sizeOf(text, 'offset'),
    pattern: patternOf,
    s: (text) => intSize(text, 'buffer size'),
    S: (text) => intSize(text, 'step_size'),
    t: benchCache,
  });
  const filename = args.image();
  const load = loadOf(args);
  const cache = benchCache(args.value('t') ?? 'writeback');
  const image = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
    write: load.isWrite,
    cache: cache.options,
    writethrough: cache.writethrough,
  });
  const isNative = args.has('n') || args.value('i') === 'native';
  if (isNative && !cache.options.direct)
    throw new ToolFailure(`Could not open '${filename}': ${NATIVE_NEEDS}`);
  tell(tool, load);
  const startMs = tool.host.clock.nowMs();
  await new Bench(tool, image, load).run();
  const seconds = (tool.host.clock.nowMs() - startMs) / 1000;
  tool.out.print(`Run completed in ${fixed(seconds, 3)} seconds.\n`);
  return 0;
}

const NATIVE_NEEDS = 'aio=native was specified, but it requires cache.direct=on, which was not specified.';

/** Options that are whole numbers: what they are called, what they usually are, and the least that they may be. */
const NUMBERS = {
  c: { what: 'request count', usual: 75_000, least: 0 },
  d: { what: 'queue depth', usual: 64, least: 1 },
  'flush-interval': { what: 'flush interval', usual: 0, least: 0 },
} as const;

function loadOf(args: Arguments): Load {
  const numberOf = (name: keyof typeof NUMBERS): number => {
    const text = args.value(name);
    return text === undefined ? NUMBERS[name].usual : wholeNumber(text, NUMBERS[name]);
  };
  const [count, depth, flushInterval] = [numberOf('c'), numberOf('d'), numberOf('flush-interval')];
  const offset = args.size('o', 'offset') ?? 0;
  const bufferBytes = intSize(args.value('s') ?? '4096', 'buffer size');
  const stepBytes = intSize(args.value('S') ?? '0', 'step_size');
  const isWrite = args.has('w');
  const pattern = patternOf(args.value('pattern') ?? '0');
  if (flushInterval > 0 && !isWrite)
    throw new ToolFailure('--flush-interval is only available in write tests');
  if (flushInterval > 0 && flushInterval < depth)
    throw new ToolFailure("Flush interval can't be smaller than depth");
  const drains = !args.has('no-drain');
  // A step of 0 is a step of one request.
  const step = stepBytes === 0 ? bufferBytes : stepBytes;
  return { count, depth, bufferBytes, stepBytes: step, offset, isWrite, pattern, flushInterval, drains };
}

function wholeNumber(text: string, { what, least }: { what: string; least: number }): number {
  const value = /^\s*\+?(0x[0-9a-f]+|\d+)$/i.test(text) ? Number(text) : NaN;
  if (value >= least && value <= MAX_INT) return value;
  throw new ToolFailure(`Invalid ${what} specified`);
}

function aioOf(text: string): void {
  if (!['threads', 'native', 'io_uring'].includes(text)) throw new ToolFailure(`Invalid aio option: ${text}`);
}

function benchCache(text: string): CacheMode {
  const cache = cacheOptions(text);
  if (!cache) throw new ToolFailure('Invalid cache mode');
  return cache;
}

function intSize(text: string, what: string): number {
  const bytes = sizeOf(text, what);
  if (bytes <= MAX_INT) return bytes;
  throw new ToolFailure(`Invalid ${what} specified. Must be between 0 and ${MAX_INT}.`);
}

function patternOf(text: string): number {
  try {
    return parsePattern(text);
  } catch {
    throw new ToolFailure('Invalid pattern byte specified');
  }
}

function tell(tool: Tool, load: Load): void {
  const { count, isWrite, bufferBytes, depth, offset, stepBytes, flushInterval } = load;
  tool.out.print(
    `Sending ${count} ${isWrite ? 'write' : 'read'} requests, ${bufferBytes} bytes each, ${depth} in parallel ` +
      `(starting at offset ${offset}, step size ${stepBytes})\n`,
  );
  if (flushInterval > 0) tool.out.print(`Sending flush every ${flushInterval} requests\n`);
}

/** Requests one behind the other, so many at a time; at the end of the image it begins again. */
class Bench {
  readonly #tool: Tool;
  readonly #image: BlockBackend;
  readonly #load: Load;
  readonly #buffers: Buffer[];
  readonly #freed = new Notifier();
  #inFlight = 0;
  #failure: unknown;

  constructor(tool: Tool, image: BlockBackend, load: Load) {
    this.#tool = tool;
    this.#image = image;
    this.#load = load;
    const buffers = Math.min(load.depth, load.count);
    this.#buffers = Array.from({ length: buffers }, () =>
      tool.host.files.buffer(load.bufferBytes).fill(load.pattern),
    );
  }

  async run(): Promise<void> {
    const { count, depth, stepBytes, flushInterval, drains } = this.#load;
    const size = this.#image.lengthBytes;
    let { offset } = this.#load;
    for (let sent = 0; sent < count; sent++) {
      if (flushInterval > 0 && sent > 0 && sent % flushInterval === 0) {
        if (drains) await this.#freed.until(() => this.#inFlight === 0);
        this.#launch(this.#image.flush());
        if (drains) await this.#freed.until(() => this.#inFlight === 0);
      }
      if (this.#inFlight >= depth) await this.#freed.until(() => this.#inFlight < depth);
      if (this.#failure !== undefined) break;
      this.#request(offset);
      offset += stepBytes;
      if (size > 0) offset %= size;
      if (sent % REQUESTS_PER_TURN === REQUESTS_PER_TURN - 1) await this.#tool.host.clock.macrotask();
    }
    await this.#freed.until(() => this.#inFlight === 0);
    if (this.#failure !== undefined) throw new ToolFailure(`Failed request: ${requestError(this.#failure)}`);
  }

  #request(offset: number): void {
    const buffer = this.#buffers.pop() ?? this.#tool.host.files.buffer(this.#load.bufferBytes);
    const { isWrite } = this.#load;
    try {
      const isDone = isWrite ? this.#image.tryWrite(offset, buffer, 0) : this.#image.tryRead(offset, buffer);
      if (isDone) {
        this.#buffers.push(buffer);
        return;
      }
    } catch (error) {
      this.#failure ??= error;
      return;
    }
    this.#launch(isWrite ? this.#image.write(offset, buffer) : this.#image.read(offset, buffer), buffer);
  }

  #launch(request: Promise<void>, buffer?: Buffer): void {
    this.#inFlight++;
    void request
      .catch((error: unknown) => (this.#failure ??= error))
      .then(() => {
        if (buffer) this.#buffers.push(buffer);
        this.#inFlight--;
        this.#freed.notify();
      });
  }
}
