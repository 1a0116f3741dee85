import { THROTTLE_LIMITS, type ThrottleLimitName, type ThrottleLimits } from '../../schema/objects.js';
import { invalid } from './object.js';

/** The most that any limit may be. */
const MOST = 1_000_000_000_000_000;

const RATES = ['bps', 'iops'] as const;
const DIRECTIONS = ['total', 'read', 'write'] as const;

export type Rate = (typeof RATES)[number];
export type Direction = (typeof DIRECTIONS)[number];
/** Every limit; 0 is none. */
export type AllLimits = { readonly [K in ThrottleLimitName]: number };

/** What holds where nothing is said: no limit, and bursts of a second. */
export const NO_LIMITS = Object.fromEntries(
  THROTTLE_LIMITS.map((name) => [name, name.endsWith('-max-length') ? 1 : 0]),
) as AllLimits;

/** Errors: invalid, in QEMU's words, for limits that do not go together. */
export function checkLimits(limits: AllLimits): void {
  checkConflicts(limits);
  checkRanges(limits);
}

function checkConflicts(limits: AllLimits): void {
  const isSet = (name: ThrottleLimitName): boolean => limits[name] !== 0;
  for (const rate of RATES)
    for (const kind of ['', '-max'] as const) {
      const ofEither = isSet(`${rate}-read${kind}`) || isSet(`${rate}-write${kind}`);
      if (isSet(`${rate}-total${kind}`) && ofEither) {
        const text = 'bps/iops/max total values and read/write values cannot be used at the same time';
        throw invalid(text);
      }
    }
  const hasRate = DIRECTIONS.some((direction) => isSet(`iops-${direction}`));
  if (isSet('iops-size') && !hasRate) throw invalid('iops size requires an iops value to be set');
}

function checkRanges(limits: AllLimits): void {
  for (const rate of RATES)
    for (const direction of DIRECTIONS) {
      const average = limits[`${rate}-${direction}`];
      const most = limits[`${rate}-${direction}-max`];
      const seconds = limits[`${rate}-${direction}-max-length`];
      if (average < 0 || most < 0 || average > MOST || most > MOST)
        throw invalid(`bps/iops/max values must be within [0, ${MOST}]`);
      if (seconds === 0) throw invalid('the burst length cannot be 0');
      if (seconds > 1 && most === 0) throw invalid('burst length set without burst rate');
      if (most !== 0 && seconds > MOST / most) throw invalid('burst length too high for this burst rate');
      if (most !== 0 && average === 0)
        throw invalid('bps_max/iops_max require corresponding bps/iops values');
      if (most !== 0 && most < average) throw invalid('bps_max/iops_max cannot be lower than bps/iops');
    }
}

/** In which QEMU looks at them. */
const IN_ORDER = [...THROTTLE_LIMITS].sort(
  (a, b) => Number(b.startsWith('bps')) - Number(a.startsWith('bps')),
);
const MOST_SECONDS = 2 ** 32 - 1;

/** Negative ones count modulo 2^64, as QEMU has them, and so are too many. Errors: invalid. */
function checkSeconds(name: string, value: number): number {
  if (value > MOST_SECONDS) throw invalid(`${name} value must be in the range [0, ${MOST_SECONDS}]`);
  return value < 0 ? 2 ** 64 + value : value;
}

/** Some limits over those that hold. Errors: invalid. */
export function withLimits(limits: AllLimits, changes: ThrottleLimits): AllLimits {
  const given = IN_ORDER.filter((name) => changes[name] !== undefined);
  const numbers = given.map((name) => {
    // Whatever is beyond 2^53 is far beyond what a limit may be.
    const value = Number(changes[name]);
    return [name, name.endsWith('-max-length') ? checkSeconds(name, value) : value];
  });
  return { ...limits, ...(Object.fromEntries(numbers) as Partial<AllLimits>) };
}

/** Some limits, and none else. Errors: invalid, where they do not go together. */
export function checkedLimits(given: ThrottleLimits): AllLimits {
  const limits = withLimits(NO_LIMITS, given);
  checkLimits(limits);
  return limits;
}

export function areLimited(limits: AllLimits): boolean {
  return RATES.some((rate) => DIRECTIONS.some((direction) => limits[`${rate}-${direction}`] > 0));
}
