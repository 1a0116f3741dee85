import type { ThrottleLimitName } from './objects.js';
import { int, int64, marked, optional, required, str, struct } from './types.js';

/** Limits of a guest's disk, by the names of block_set_io_throttle (block.json). */

/** Each name here, and that of throttle groups. */
export const RATES = {
  bps: 'bps-total',
  bps_rd: 'bps-read',
  bps_wr: 'bps-write',
  iops: 'iops-total',
  iops_rd: 'iops-read',
  iops_wr: 'iops-write',
} as const satisfies { readonly [name: string]: ThrottleLimitName };

export const BURSTS = {
  bps_max: 'bps-total-max',
  bps_rd_max: 'bps-read-max',
  bps_wr_max: 'bps-write-max',
  iops_max: 'iops-total-max',
  iops_rd_max: 'iops-read-max',
  iops_wr_max: 'iops-write-max',
} as const satisfies { readonly [name: string]: ThrottleLimitName };

export const BURST_LENGTHS = {
  bps_max_length: 'bps-total-max-length',
  bps_rd_max_length: 'bps-read-max-length',
  bps_wr_max_length: 'bps-write-max-length',
  iops_max_length: 'iops-total-max-length',
  iops_rd_max_length: 'iops-read-max-length',
  iops_wr_max_length: 'iops-write-max-length',
} as const satisfies { readonly [name: string]: ThrottleLimitName };

export const LIMITS = { ...RATES, ...BURSTS, ...BURST_LENGTHS, iops_size: 'iops-size' } as const;
export type LimitName = keyof typeof LIMITS;

/** What an answer has only where such a limit is set. */
export const OPTIONAL_LIMITS = Object.fromEntries(
  [...Object.keys(BURSTS), ...Object.keys(BURST_LENGTHS), 'iops_size'].map((name) => [name, optional(int)]),
) as { [K in Exclude<LimitName, keyof typeof RATES>]: ReturnType<typeof optional<number, number>> };

const REQUIRED = Object.fromEntries(Object.keys(RATES).map((name) => [name, required(int64)])) as {
  [K in keyof typeof RATES]: ReturnType<typeof required<number | bigint, number | bigint>>;
};
const OPTIONAL = Object.fromEntries(Object.keys(OPTIONAL_LIMITS).map((name) => [name, optional(int64)])) as {
  [K in keyof typeof OPTIONAL_LIMITS]: ReturnType<typeof optional<number | bigint, number | bigint>>;
};

export const BlockSetIoThrottle = struct('BlockIOThrottle', {
  device: marked('deprecated', optional(str)),
  id: optional(str),
  ...REQUIRED,
  ...OPTIONAL,
  group: optional(str),
});
