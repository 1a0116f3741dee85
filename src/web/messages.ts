import type { CommandResult } from '../schema/commands.js';
import type { JsonObject } from '../schema/types.js';
import type { View } from '../view/model.js';
import type { DiskRates } from '../view/rates.js';

/** What is known of one server at one moment. */
export interface ServerState {
  readonly name: string;
  readonly view?: View;
  /** By ids of users. */
  readonly disks: Readonly<Record<string, DiskRates>>;
  /** How jobs ended, the oldest first, as livedisk tells. */
  readonly ended?: readonly JobEnd[];
  /** Why there is nothing newer. */
  readonly error?: string;
  /** Of the look, since 1970. */
  readonly timeMs: number;
}

export type JobEnd = CommandResult<'x-job-history'>[number];

/** What is dirty of a bitmap. */
export interface BitmapStretches {
  readonly stretches: ReadonlyArray<{ readonly start: number; readonly lengthBytes: number }>;
  /** There is more. */
  readonly isCut: boolean;
}

export type PointList = CommandResult<'x-point-list'>;

/** What is about to be done to a point in time. */
export interface PointPlan {
  readonly plan: CommandResult<'x-point-create'>['plan'];
  readonly before: View;
  readonly after: View;
}

export interface LogEntry {
  readonly timeMs: number;
  readonly server: string;
  readonly kind: 'event' | 'command' | 'error' | 'note';
  readonly name: string;
  readonly data?: JsonObject;
  readonly text?: string;
}
