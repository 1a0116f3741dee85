import type { JsonObject } from '../schema/types.js';
import type { View } from '../view/model.js';
import type { DiskRates } from '../view/rates.js';

/** What is known of one server at one moment. */
export interface ServerState {
  readonly name: string;
  readonly view?: View;
  /** By ids of users. */
  readonly disks: Readonly<Record<string, DiskRates>>;
  /** Why there is nothing newer. */
  readonly error?: string;
  /** Of the look, since 1970. */
  readonly timeMs: number;
}

export interface LogEntry {
  readonly timeMs: number;
  readonly server: string;
  readonly kind: 'event' | 'command' | 'error' | 'note';
  readonly name: string;
  readonly data?: JsonObject;
  readonly text?: string;
}
