/** A request that changes a range. */
export type Change =
  | { kind: 'write'; offset: number; lengthBytes: number; buffer: Uint8Array; flags: number }
  | { kind: 'zeroes'; offset: number; lengthBytes: number; flags: number }
  | { kind: 'discard'; offset: number; lengthBytes: number };

/** What a job does around changes, those of a node or those that pass its filter. */
export interface ChangeGate {
  /** Whether a change of the range may go on directly, now. */
  isOpen(offset: number, lengthBytes: number): boolean;
  /** What takes a wait goes through run() even where it might go on directly: the gate is to know of it meanwhile. */
  readonly tracks?: boolean;
  /** Sees a change through: calls `forward`, which does it, when it may. */
  run(change: Change, forward: () => Promise<void>): Promise<void>;
  /** The same of a flush; absent: it goes on directly. */
  flush?(forward: () => Promise<void>): Promise<void>;
}
