import type { CommandResult } from '../schema/commands.js';
import type { JsonObject } from '../schema/types.js';
import type { Plan, PlannedCommand } from '../view/plan/types.js';
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

/** What is about to be done; whoever does it says the gist of what was told, and nothing else is done. */
export interface ToldPlan extends Plan {
  readonly before: View;
  readonly gist: string;
}

/** What is about to be done to a point in time. */
export interface PointPlan {
  readonly plan: CommandResult<'x-point-create'>['plan'];
  /** Names of older points that are deleted for it. */
  readonly deletes: readonly string[];
  /** How new images are called: whoever does it says so, and they are. */
  readonly called: ReadonlyArray<{ readonly node: string; readonly 'new-node-name': string }>;
  readonly before: View;
  readonly after: View;
  /** What the server is sent, where it does not do it itself. */
  readonly commands?: readonly PlannedCommand[];
}

export interface LogEntry {
  readonly timeMs: number;
  readonly server: string;
  readonly kind: 'event' | 'command' | 'error' | 'note';
  readonly name: string;
  readonly data?: JsonObject;
  readonly text?: string;
}

/** Images in the folders of a server's images that it does not have open. */
export interface Beside {
  /** Those that were looked into. */
  readonly folders: readonly string[];
  readonly files: readonly BesideFile[];
  /** There are more than were looked at. */
  readonly isCut: boolean;
}

export interface BesideFile {
  readonly file: string;
  readonly format: string;
  /** That it takes. */
  readonly bytes: number;
  readonly backing?: string;
  /** The image of the server, by its id, that it shows where it holds nothing: a change of that one spoils it. */
  readonly standsOn?: string;
}

/** Where a disk is written to: bytes a second. */
export type Heat = CommandResult<'x-query-write-heat'>;
