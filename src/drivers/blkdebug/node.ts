import { alignDown, alignUp } from '../../base/align.js';
import { Abandonable } from '../../base/async.js';
import { errnoError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverInfo,
  DriverInstance,
  IoDriver,
  PreparedChange,
} from '../../block/driver.js';
import type { HostClock } from '../../host/host.js';
import type { PassedMemory } from '../../host/passing.js';
import { type BlockStatus, Flag, hasFlag, IoRequest, withoutFlag } from '../../block/request.js';
import { Breakpoints } from './breakpoints.js';
import type { IoType } from './events.js';
import type { BlkdebugOptions } from './options.js';
import { delayOf, ErrorRules, type RulesMemory } from './rules.js';

/** What has become of its rules. */
interface Memory {
  rules: RulesMemory;
  breakpoints: Array<{ event: string; tag: string }>;
}

/**
 * Passes requests on, except those that its rules let fail, wait or stop. Only the promise forms of requests exist,
 * so that every one of them can be made to wait.
 */
export class BlkdebugNode implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes: number;
  readonly io: IoDriver = this;
  readonly honoursFua = true;
  readonly breakpoints = new Breakpoints();
  readonly #image: ChildIo;
  readonly #clock: HostClock;
  readonly #nodeName: string;
  readonly #options: BlkdebugOptions;
  readonly #rules: ErrorRules;
  readonly #waits = new Abandonable();

  constructor(context: DriverContext, options: BlkdebugOptions) {
    this.#image = context.child('image');
    this.#clock = context.host.clock;
    this.#nodeName = context.nodeName;
    this.#options = options;
    const { memory } = context;
    const { rules, breakpoints = [] } = (memory?.data as Memory | undefined) ?? {};
    this.#rules = rules ? ErrorRules.from(rules) : new ErrorRules(options.inject, options.setState);
    for (const { event, tag } of breakpoints) this.breakpoints.add(event, tag);
    this.requestAlignmentBytes = options.alignBytes;
  }

  get memory(): PassedMemory {
    const data: Memory = { rules: this.#rules.memory, breakpoints: this.breakpoints.waiting };
    return { data, parts: [] };
  }

  get lengthBytes(): number {
    return this.#image.lengthBytes;
  }

  /** The next request that announces `event` stops until it is resumed by `tag`. Errors: not-found. */
  breakAt(event: string, tag: string): void {
    this.breakpoints.add(event, tag);
  }

  /** Errors: not-found when nothing has stopped under that tag. */
  resume(tag: string): void {
    this.breakpoints.resume(tag);
  }

  /** Errors: not-found when neither a breakpoint nor a stopped request has that tag. */
  removeBreak(tag: string): void {
    this.breakpoints.remove(tag);
  }

  isSuspended(tag: string): boolean {
    return this.breakpoints.isSuspended(tag);
  }

  whenSuspended(tag: string): Promise<void> {
    return this.breakpoints.whenSuspended(tag);
  }

  announce(event: string): Promise<void> | undefined {
    this.#rules.fire(event);
    const delayMs = delayOf(this.#options.delays, (rule) => rule.event === event);
    const stop = this.breakpoints.hit(event);
    if (delayMs === 0) return stop;
    return this.#sleep(delayMs).then(() => stop);
  }

  /** Nothing waits any more: requests that do fail, and later ones too. */
  cancelInFlight(): void {
    this.#waits.abandon(errnoError('ECANCELED', undefined, { node: this.#nodeName }));
    this.breakpoints.resumeAll();
  }

  #sleep(delayMs: number): Promise<void> {
    return this.#waits.sleep((done) => this.#clock.setTimer(delayMs, done));
  }

  /** Waits and throws as the rules say for a request of this type. */
  async #check(ioType: IoType, offset: number, lengthBytes: number): Promise<void> {
    const rule = this.#rules.take(ioType, offset, lengthBytes);
    const delayMs = delayOf(this.#options.delays, (delay) => delay.ioType === ioType);
    if (delayMs > 0) await this.#sleep(delayMs);
    this.#waits.check();
    if (rule?.errno === undefined) return;
    if (!rule.immediately) await this.#clock.macrotask();
    throw errnoError(rule.errno, undefined, { node: this.#nodeName, offset });
  }

  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    await inPieces(offset, lengthBytes, this.#options.maxTransferBytes, async (at, length) => {
      await this.#check('read', at, length);
      request.assertIs(generation);
      await this.#image.readPart(request, from + (at - offset), length, at);
    });
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    await this.announce('pwritev');
    await this.#writePieces(request, from, lengthBytes, offset, flags);
    await this.announce('pwritev_done');
  }

  async #writePieces(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    const { generation } = request;
    await inPieces(offset, lengthBytes, this.#options.maxTransferBytes, async (at, length) => {
      await this.#check('write', at, length);
      request.assertIs(generation);
      await this.#image.writePart(request, from + (at - offset), length, at, flags);
    });
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const { writeZeroAlignBytes, maxWriteZeroBytes } = this.#options;
    await this.announce('pwritev_zero');
    for (const { at, length, isWhole } of partsOf(offset, lengthBytes, writeZeroAlignBytes)) {
      if (isWhole)
        await inPieces(at, length, maxWriteZeroBytes, async (start, piece) => {
          await this.#check('write-zeroes', start, piece);
          await this.#image.writeZeroes(start, piece, flags);
        });
      else await this.#writeZeroBytes(at, length, flags);
    }
    await this.announce('pwritev_done');
  }

  /** Errors: unsupported where the caller wants it done only if it is fast. */
  async #writeZeroBytes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    if (hasFlag(flags, Flag.noFallback))
      throw errnoError('ENOTSUP', undefined, { node: this.#nodeName, offset });
    const zeroes = IoRequest.ofBuffer(Buffer.alloc(lengthBytes));
    await this.#writePieces(zeroes, 0, lengthBytes, offset, withoutFlag(flags, Flag.mayUnmap));
  }

  async discard(offset: number, lengthBytes: number): Promise<void> {
    const { discardAlignBytes, maxDiscardBytes } = this.#options;
    for (const { at, length } of partsOf(offset, lengthBytes, discardAlignBytes))
      await inPieces(at, length, maxDiscardBytes, async (start, piece) => {
        await this.#check('discard', start, piece);
        await this.#image.discard(start, piece);
      });
  }

  async flush(): Promise<void> {
    await this.announce('flush_to_os');
    await this.announce('flush_to_disk');
    await this.#check('flush', 0, 0);
    await this.#image.flush();
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    await this.#check('block-status', offset, lengthBytes);
    const status = await this.#image.status(offset, lengthBytes);
    // A filter's plain bytes are its child's, at the same place.
    return status.data ? { ...status, hostOffset: offset } : status;
  }

  allocate(offset: number, lengthBytes: number): Promise<void> {
    return this.#image.allocate(offset, lengthBytes);
  }

  extend(lengthBytes: number): Promise<void> {
    return this.#image.extend(lengthBytes);
  }

  startWriteback(offset: number, lengthBytes: number): void {
    this.#image.startWriteback(offset, lengthBytes);
  }

  truncate(lengthBytes: number): Promise<void> {
    return this.#image.truncate(lengthBytes);
  }

  /** None of its own options may change. */
  async prepareReopen(): Promise<PreparedChange> {
    return { commit: () => undefined, abort: () => undefined };
  }

  info(): DriverInfo {
    return {};
  }

  async close(): Promise<void> {
    this.breakpoints.resumeAll();
  }
}

interface RangePart {
  readonly at: number;
  readonly length: number;
  /** Begins and ends at a multiple of the unit. */
  readonly isWhole: boolean;
}

/** A head, whole units, and a tail, as far as there are such. */
function* partsOf(offset: number, lengthBytes: number, unitBytes: number): Generator<RangePart> {
  const end = offset + lengthBytes;
  const start = Math.min(alignUp(offset, unitBytes), end);
  const stop = Math.max(alignDown(end, unitBytes), start);
  if (start > offset) yield { at: offset, length: start - offset, isWhole: false };
  if (stop > start) yield { at: start, length: stop - start, isWhole: true };
  if (end > stop) yield { at: stop, length: end - stop, isWhole: false };
}

async function inPieces(
  offset: number,
  lengthBytes: number,
  pieceBytes: number,
  request: (offset: number, lengthBytes: number) => Promise<void>,
): Promise<void> {
  for (let done = 0; done < lengthBytes; done += pieceBytes) {
    await request(offset + done, Math.min(pieceBytes, lengthBytes - done));
  }
}
