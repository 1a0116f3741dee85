import { isDrawn } from './amount.js';
import { applyWrite, type RecordedDisk } from './recorded-disk.js';

const SECTOR_BYTES = 512;

/** A write that a crash may lose. */
interface Pending {
  offset: number;
  bytes: Buffer;
}

/** What a disk may hold after power was lost. */
export interface CrashState {
  content: Buffer;
  /** Labels of marks set before the crash, oldest first. */
  marks: string[];
  /** For messages: which of the writes since the last flush survived. */
  survived: string;
  /** One of the states of each write that was not durable. */
  isOfMany: boolean;
}

/**
 * Crash states of a recorded run: after each flush (and at the end), what was flushed plus a choice of what was not.
 * All choices of one write, all but one, every tail and head of the order, and `tears` random choices of single
 * sectors. Sectors are atomic; order between flushes is not kept.
 */
export function* crashStates(
  disk: RecordedDisk,
  below: (bound: number) => number,
  tears = 3,
): Generator<CrashState> {
  let durable = disk.initial;
  let pending: Pending[] = [];
  let marks: string[] = [];
  for (const event of disk.log) {
    switch (event.kind) {
      case 'write':
        pending.push(event);
        break;
      case 'mark':
        marks = [...marks, event.label];
        break;
      case 'flush':
        yield* choices(durable, pending, marks, below, tears);
        for (const { offset, bytes } of pending) durable = applyWrite(Buffer.from(durable), offset, bytes);
        pending = [];
        break;
    }
  }
  yield* choices(durable, pending, marks, below, tears);
}

/** For what no crash may break: nothing, everything and torn writes always, and of the other states a part. */
export function* drawnCrashStates(...run: Parameters<typeof crashStates>): Generator<CrashState> {
  for (const state of crashStates(...run)) if (!state.isOfMany || isDrawn()) yield state;
}

function* choices(
  durable: Buffer,
  pending: readonly Pending[],
  marks: string[],
  below: (bound: number) => number,
  tears: number,
): Generator<CrashState> {
  const state = (writes: readonly Pending[], survived: string, isOfMany = false): CrashState => {
    const content = writes.reduce<Buffer>(
      (all, { offset, bytes }) => applyWrite(all, offset, bytes),
      Buffer.from(durable),
    );
    return { content, marks, survived, isOfMany };
  };
  yield state([], 'none');
  if (pending.length === 0) return;
  yield state(pending, 'all');
  for (let i = 0; i < pending.length; i++) {
    yield state(pending.slice(i, i + 1), `only ${i} of ${pending.length}`, true);
    if (pending.length < 3) continue;
    yield state([...pending.slice(0, i), ...pending.slice(i + 1)], `all but ${i} of ${pending.length}`, true);
    if (i > 0) yield state(pending.slice(i), `from ${i} of ${pending.length}`, true);
  }
  for (let i = 0; i < tears; i++) {
    yield state(
      pending.flatMap((write) => sectors(write).filter(() => below(2) === 0)),
      `torn ${i}`,
    );
  }
}

function sectors({ offset, bytes }: Pending): Pending[] {
  const pieces: Pending[] = [];
  for (let at = 0; at < bytes.length;) {
    const end = Math.min(bytes.length, at + SECTOR_BYTES - ((offset + at) % SECTOR_BYTES));
    pieces.push({ offset: offset + at, bytes: bytes.subarray(at, end) });
    at = end;
  }
  return pieces;
}

/** A small generator of its own seed, so that a failing run can be repeated. */
export function seededBelow(seed: number): (bound: number) => number {
  let state = seed >>> 0 || 1;
  return (bound) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % bound;
  };
}
