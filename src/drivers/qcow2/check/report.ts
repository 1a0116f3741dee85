import { nothingFound } from '../../tables/check-result.js';
import type { ImageCheck, RepairMode } from '../../../block/driver.js';
import type { References } from './references.js';

/** Findings in words that are kept, of all that are told. */
const MAX_MESSAGES = 1000;

/** What one finding asks to be changed. Offsets are of the image's file, `index` counts entries of a table. */
export type Repair =
  /** Clusters [start, start + count) get refcount `to` instead of `from`. */
  | { kind: 'refcount'; start: number; count: number; from: number; to: number }
  /** The flag that says that an entry's refcount is exactly one. */
  | { kind: 'l1-copied'; index: number; copied: boolean }
  | { kind: 'l2-copied'; tableOffset: number; index: number; copied: boolean }
  /** A preallocated zero cluster whose host cluster cannot be gives it up. */
  | { kind: 'l2-zero'; tableOffset: number; index: number }
  /** A snapshot table of these entries takes the place of the one that has so many bytes. */
  | { kind: 'snapshot-table'; entries: readonly Buffer[]; formerBytes: number }
  | Rebuild;

/** A new refcount table and new blocks take the place of those that there are. */
export interface Rebuild {
  kind: 'rebuild';
  /** What is to be counted; the former structures still are, as far as they could be. */
  references: References;
  /** Clusters that are former refcount blocks, as often as they are named; they are given up afterwards. */
  formerBlocks: number[];
  /** Whether the former table is counted too. */
  formerTableIsCounted: boolean;
  /** Host clusters where something is that is not counted: nothing new goes there. */
  avoid: ReadonlySet<number>;
}

export interface Qcow2CheckResult extends ImageCheck {
  /** The first findings, in QEMU's words where it has some. */
  messages: string[];
}

/** What a check found: words as they come, counts, and what is to be done about it. */
export class Report {
  readonly mode: RepairMode;
  readonly result: Qcow2CheckResult;
  repairs: Repair[] = [];
  readonly #say: (line: string) => void;

  constructor(mode: RepairMode, totalClusters: number, say: (line: string) => void) {
    this.mode = mode;
    this.#say = say;
    this.result = { ...nothingFound(totalClusters), messages: [] };
  }

  line(text: string): void {
    if (this.result.messages.length < MAX_MESSAGES) this.result.messages.push(text);
    this.#say(text);
  }

  /** What nothing is done about. */
  corruption(text: string): void {
    this.result.corruptions++;
    this.line(text);
  }

  /** A corruption with its repair, which is made where `mayRepair`. */
  repairable(text: string, mayRepair: boolean, repair: Repair): void {
    if (!mayRepair) return this.corruption(`ERROR ${text}`);
    this.result.corruptionsFixed++;
    this.line(`Repairing ${text}`);
    this.repairs.push(repair);
  }

  /** Corruptions whose repair is planned by who found them. */
  fixed(count: number, text: string): void {
    this.result.corruptionsFixed += count;
    this.line(text);
  }

  /** Takes back repairs of corruptions that must not be made. */
  takeBack(isWrong: (repair: Repair) => boolean): void {
    const wrong = this.repairs.filter(isWrong);
    this.repairs = this.repairs.filter((repair) => !isWrong(repair));
    this.result.corruptionsFixed -= wrong.length;
    this.result.corruptions += wrong.length;
  }

  checkError(text: string): void {
    this.result.checkErrors++;
    this.line(text);
  }

  /** Nothing wrong is left when the repairs are made. */
  get isCleanAfterwards(): boolean {
    return this.result.checkErrors === 0 && this.result.corruptions === 0;
  }
}
