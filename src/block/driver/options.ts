import type { DriverOptions, GenericOptions } from '../../schema/blockdev-options.js';
import type { FilledOf } from '../../schema/types.js';

/** Plain JSON values; of options, as QMP or a library caller gives them. */
export type Json = null | boolean | number | bigint | string | Json[] | { [key: string]: Json };
export type NodeOptions = { [key: string]: Json };

/** Options of one node as they were given, checked and typed: neither children nor defaults. */
export type GivenOptions = GenericOptions & { readonly [key: string]: Json };

/** What a driver opens with: the generic options with what is inherited, and its own with their defaults. */
export type Settings<O extends DriverOptions = DriverOptions> = GenericOptions &
  FilledOf<O['members']> & { readonly cache: CacheSettings };

export interface CacheSettings {
  /** O_DIRECT. */
  readonly direct: boolean;
  /** Flushes are not sent on: for images that need not outlive a crash. */
  readonly 'no-flush': boolean;
}
