import { Notifier } from '../../base/async.js';
import { BlockError, toBlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { MovePlan, MoveStage, WholeMoveInfo, XMove } from '../../schema/move.js';
import type { GuestDevice } from '../device.js';
import { type CopyParts, disksToMove, MovedDisk } from './moved-disk.js';
import type { Moves } from './moves.js';
import { type MoveTarget, parseTarget } from './target.js';

export interface WholeMoveParts extends CopyParts {
  readonly host: Host;
  readonly devices: ReadonlyMap<string, GuestDevice>;
  readonly moves: Moves;
  readonly emit: (event: string, data: { [key: string]: string }) => void;
}

/** How often a copy is looked at. */
const LOOK_MS = 50;
/** How much longer than was forecast the guest may rest for the copies' end, before it goes on and the move has failed. */
const PATIENCE_MS = 5_000;
/** Messages there and back while the guest rests: its state, the images, the last word. */
const ROUND_TRIPS_AT_REST = 3;

/**
 * A machine and its disks go to another host: each disk is mirrored to an export there, and when all are in step the
 * machine is moved, the copies being ended while the guest rests. Until then nothing has changed but the copies; from
 * then on docs/MIGRATION.md says who has it.
 */
export class WholeMove {
  readonly #parts: WholeMoveParts;
  #stage: MoveStage | undefined;
  #disks: readonly MovedDisk[] = [];
  #error: string | undefined;
  /** What another process has told of one that has ended. */
  #past: WholeMoveInfo | undefined;
  #isCancelled = false;
  #isClosed = false;
  /** What the forecast is made of, in ms. */
  #fixedMs = 0;
  #stopMs: number | undefined;
  readonly #changed = new Notifier();
  #ended: Promise<void> = Promise.resolve();

  constructor(parts: WholeMoveParts) {
    this.#parts = parts;
  }

  /** Resolves when it has come to its end, or there is none. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /**
   * Begins, and answers what it will do; only that where it is a dry run. Errors, and then nothing has changed: busy,
   * invalid; those of connecting to either end; what the destination refuses; those of mirrors that cannot begin.
   */
  async begin(request: XMove): Promise<MovePlan> {
    if (this.isUnderWay) throw new BlockError('busy', "There's a migration process in progress");
    this.#parts.moves.assertMayLeave();
    const target = targetOf(request.uri);
    const isDry = request['dry-run'] === true;
    const before = this.#stage;
    this.#stage = 'preparing';
    let disks: readonly MovedDisk[] = [];
    try {
      const roundTripMs = await this.#parts.moves.rehearse(target, request.bitmaps ?? true);
      disks = await this.#open(request.storage);
      const plan = await this.#plan(request, disks, roundTripMs);
      if (isDry) {
        await closeAll(disks);
        this.#stage = before;
        return plan;
      }
      await this.#startCopies(disks, request.storage?.speed ?? 0);
      return plan;
    } catch (error) {
      await closeAll(disks);
      this.#stage = before;
      throw error;
    } finally {
      if (this.#stage === 'copying') this.#ended = this.#run(request);
    }
  }

  get isUnderWay(): boolean {
    return this.#stage === 'preparing' || this.#stage === 'copying' || this.#stage === 'switching';
  }

  async #open(storage: XMove['storage']): Promise<MovedDisk[]> {
    if (!storage) return [];
    const opened: MovedDisk[] = [];
    try {
      for (const disk of disksToMove(this.#parts.devices, storage.disks))
        opened.push(await MovedDisk.open(this.#parts, disk, storage));
      return opened;
    } catch (error) {
      await closeAll(opened);
      throw error;
    }
  }

  async #plan(request: XMove, disks: readonly MovedDisk[], roundTripMs: number): Promise<MovePlan> {
    const planned: MovePlan['disks'] = [];
    let flushMs = 0;
    for (const disk of disks) {
      flushMs = Math.max(flushMs, await disk.flushMs());
      planned.push({ ...shown(disk), length: disk.source.lengthBytes, data: await disk.dataBytes() });
    }
    this.#fixedMs = ROUND_TRIPS_AT_REST * roundTripMs + flushMs;
    return {
      disks: planned,
      bitmaps: request.bitmaps === false ? [] : [...this.#bitmaps()],
      'round-trip-us': Math.round(1000 * roundTripMs),
      'forecast-stop-ms': Math.ceil(this.#fixedMs),
    };
  }

  *#bitmaps(): Generator<MovePlan['bitmaps'][number]> {
    for (const node of this.#parts.graph.nodes.values())
      for (const { name } of node.dirtyBitmaps) if (name !== undefined) yield { node: node.name, name };
  }

  async #startCopies(disks: readonly MovedDisk[], speed: number): Promise<void> {
    for (const disk of disks) await disk.copy(speed);
    this.#disks = disks;
    this.#past = undefined;
    this.#error = undefined;
    this.#stopMs = undefined;
    this.#isCancelled = false;
    this.#enter('copying');
  }

  async #run(request: XMove): Promise<void> {
    try {
      await this.#untilInStep(request['max-stop']);
      this.#enter('switching');
      await this.#switchOver(request);
      this.#enter('completed');
    } catch (error) {
      this.#error = toBlockError(error).message;
      this.#enter(this.#isCancelled ? 'cancelled' : 'failed');
    } finally {
      await closeAll(this.#disks);
    }
  }

  /** Errors: those of copies that fail; cancelled. */
  async #untilInStep(maxStopMs: number | undefined): Promise<void> {
    for (;;) {
      const inStep = await Promise.all(this.#disks.map((disk) => disk.isInStep()));
      this.#assertWanted();
      if (!inStep.includes(false) && (maxStopMs === undefined || this.#forecastMs() <= maxStopMs)) return;
      await this.#rest();
    }
  }

  async #rest(): Promise<void> {
    let isLate = false;
    const timer = this.#parts.host.clock.setTimer(LOOK_MS, () => {
      isLate = true;
      this.#changed.notify();
    });
    await this.#changed.until(() => isLate || this.#isCancelled || this.#isClosed);
    timer.cancel();
  }

  /** Errors: what the move failed with. */
  async #switchOver({ uri, bitmaps = true, 'max-stop': maxStopMs = 0 }: XMove): Promise<void> {
    const { moves, host } = this.#parts;
    let stoppedMs = 0;
    moves.migrate(() => parseTarget(uri), false, {
      bitmaps,
      exports: this.#disks.map(({ exportName }) => exportName),
      whileStopped: async () => {
        stoppedMs = host.clock.nowMs();
        await this.#finishCopies(maxStopMs + PATIENCE_MS);
      },
    });
    await moves.source.ended;
    const { status, 'error-desc': error } = moves.source.info();
    if (status !== 'completed') throw new BlockError('io', error ?? 'The migration was cancelled');
    this.#stopMs = host.clock.nowMs() - stoppedMs;
  }

  /** The guest rests no longer for it than that. Errors: the copies'; timeout. */
  async #finishCopies(withinMs: number): Promise<void> {
    let isLate = false;
    const timer = this.#parts.host.clock.setTimer(withinMs, () => {
      isLate = true;
      // What they wait for is given up, so that they end, and soon.
      for (const disk of this.#disks) disk.giveUp();
    });
    try {
      await Promise.all(this.#disks.map((disk) => disk.finish()));
    } catch (error) {
      if (!isLate) throw error;
      const seconds = withinMs / 1000;
      throw new BlockError(
        'timeout',
        `The copies were not at their end after ${seconds} s in which the guest rested`,
        {
          cause: error,
        },
      );
    } finally {
      timer.cancel();
    }
  }

  #assertWanted(): void {
    if (this.#isCancelled || this.#isClosed) throw new BlockError('cancelled', 'The move was cancelled');
  }

  /** What is left goes at the pace of now, the machine's state and the last flush as they went before. */
  #forecastMs(): number {
    const waits = this.#disks.map((disk) => {
      const { leftBytes, bytesPerSecond } = disk.progress();
      if (leftBytes === 0) return 0;
      return bytesPerSecond === 0 ? Infinity : (1000 * leftBytes) / bytesPerSecond;
    });
    return this.#fixedMs + Math.max(0, ...waits);
  }

  /** Undefined where none was begun. */
  info(): WholeMoveInfo | undefined {
    if (this.#past) return this.#past;
    if (this.#stage === undefined) return undefined;
    const forecastMs = this.#stage === 'copying' ? this.#forecastMs() : Infinity;
    return {
      stage: this.#stage,
      disks: this.#disks.map((disk) => {
        const { doneBytes, leftBytes, bytesPerSecond } = disk.progress();
        return { ...shown(disk), done: doneBytes, left: leftBytes, rate: Math.round(bytesPerSecond) };
      }),
      ...(Number.isFinite(forecastMs) && { 'forecast-stop-ms': Math.ceil(forecastMs) }),
      ...(this.#stopMs !== undefined && { 'stop-ms': Math.round(this.#stopMs) }),
      ...(this.#error !== undefined && { error: this.#error }),
    };
  }

  /** One that has ended in another process. */
  restore(past: WholeMoveInfo): void {
    this.#past = past;
    this.#stage = past.stage;
  }

  /** The machine stays here. Errors: invalid where none is under way; busy when it is too late. */
  cancel(): void {
    if (this.#stage !== 'copying' && this.#stage !== 'switching')
      throw new BlockError('invalid', 'There is no move under way');
    if (this.#stage === 'switching') this.#parts.moves.source.cancel();
    this.#isCancelled = true;
    this.#changed.notify();
  }

  /** The engine ends. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#changed.notify();
    await this.#ended;
  }

  #enter(stage: MoveStage): void {
    this.#stage = stage;
    this.#parts.emit('X_MOVE_STAGE', { stage, ...(this.#error !== undefined && { error: this.#error }) });
  }
}

function shown({ device, source, exportName }: MovedDisk): { device: string; node: string; export: string } {
  return { device, node: source.name, export: exportName };
}

/** Where it may be asked for again when the link breaks. Errors: invalid. */
function targetOf(uri: string): MoveTarget {
  const target = parseTarget(uri);
  if (target?.kind === 'socket') return target;
  throw new BlockError('invalid', "Parameter 'uri' expects tcp:HOST:PORT or unix:PATH");
}

async function closeAll(disks: readonly MovedDisk[]): Promise<void> {
  for (const disk of disks) await disk.close();
}
