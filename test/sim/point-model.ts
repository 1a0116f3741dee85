/** What is on disks, piece by piece: the number of the record that was written there last; 0: nothing, or zeroes. */
export type State = readonly (readonly number[])[];

export const PIECES = 12;
/** Of one and a half clusters. */
export const PIECE_BYTES = 6144;
export const DISK_BYTES = PIECES * PIECE_BYTES;

/** A name for a moment of a disk. */
export interface Moment {
  /** The states between which it lies. */
  from: number;
  to: number;
  /** `usable`: it must be that; `unsure`: its moment, if it is usable; `gone`: it is not, but may be in the midst of being deleted. */
  expected: 'usable' | 'unsure' | 'gone';
}

/** What guests of several disks wrote, one record after the other, and which moments of them have names. */
export class PointModel {
  /** All states so far: each is one record, or one disk's going back, away from the one before. */
  readonly states: State[];
  /** The last one that is certain to be there; a next one may be. */
  certain = 0;
  /** What else the disks may show after a crash: where they were about to go. */
  readonly others: State[] = [];
  /** By disk, oldest first. */
  readonly moments: Array<Map<string, Moment>>;
  /** The disks' active images, as whoever opens them knows them. */
  readonly active: string[];
  /** Image files that no disk needs, and that are nobody's to remove. */
  readonly left = new Set<string>();
  /** Those of them that were active images, and what their disks showed. */
  readonly leftContents = new Map<string, readonly number[]>();
  /** A crash, a second manager or a job of others was there: images may be left over, or names lost. */
  hasForeign = false;
  #record = 0;

  constructor(active: readonly string[]) {
    this.active = [...active];
    this.states = [active.map(() => Array<number>(PIECES).fill(0))];
    this.moments = active.map(() => new Map<string, Moment>());
  }

  get now(): State {
    return this.states.at(-1) ?? [];
  }

  /** Of a record that is about to be written. */
  begin(disk: number, piece: number, isZero: boolean): number {
    const record = isZero ? 0 : ++this.#record;
    this.states.push(
      this.now.map((pieces, i) =>
        i === disk ? pieces.map((old, at) => (at === piece ? record : old)) : pieces,
      ),
    );
    return record;
  }

  /** All that has begun is done. */
  done(): void {
    this.certain = this.states.length - 1;
    this.others.length = 0;
  }

  /** Disks show other pieces from now on. */
  become(state: State): void {
    this.states.push(state);
    this.done();
  }

  /** What is known of a point of a disk from now on; of one that is gone nothing more. */
  expect(index: number, name: string, expected: Moment['expected']): void {
    const moments = this.moments[index];
    const moment = moments?.get(name);
    // What is of several disks may be gone from one of them.
    if (moment && moment.expected !== 'gone') moments?.set(name, { ...moment, expected });
  }

  /** What the states of a moment say of a disk. */
  isOneOf({ from, to }: Pick<Moment, 'from' | 'to'>, disk: number, pieces: readonly number[]): boolean {
    return this.statesOf({ from, to }).some((state) => alike(state[disk], pieces));
  }

  statesOf({ from, to }: Pick<Moment, 'from' | 'to'>): State[] {
    return this.states.slice(from, to + 1);
  }
}

export function alike(a: readonly number[] | undefined, b: readonly number[]): boolean {
  return a !== undefined && a.length === b.length && a.every((one, i) => one === b[i]);
}

/** A record's bytes. */
export function bytesOf(record: number): Buffer {
  return Buffer.from(new Uint32Array(PIECE_BYTES / 4).fill(record).buffer);
}

/** Which records a disk's bytes are; -1 for a piece that is none. */
export function recordsIn(bytes: Buffer): number[] {
  return Array.from({ length: PIECES }, (_, i) => {
    const piece = bytes.subarray(i * PIECE_BYTES, (i + 1) * PIECE_BYTES);
    const record = piece.readUInt32LE(0);
    return piece.equals(bytesOf(record)) ? record : -1;
  });
}
