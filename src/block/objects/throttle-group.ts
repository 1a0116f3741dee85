import { THROTTLE_LIMITS, ThrottleLimits, type ThrottleLimitName } from '../../schema/objects.js';
import type { HostClock } from '../../host/host.js';
import { int64, type JsonValue } from '../../schema/types.js';
import { invalid, type ObjectType, parseProperty, type PropertyValues, UserObject } from './object.js';
import { type AllLimits, checkLimits, NO_LIMITS, withLimits } from './throttle-limits.js';
import { type ThrottleLevels, type ThrottleMember, Throttling } from './throttling.js';

/** Limits of I/O for all who name it: throttle filters, and guests' disks. */
export class ThrottleGroup extends UserObject {
  readonly #throttling: Throttling;

  constructor(id: string, throttling: Throttling) {
    super(id, THROTTLE_GROUP, {});
    this.#throttling = throttling;
  }

  get limits(): AllLimits {
    return this.#throttling.limits;
  }

  /** Errors: invalid, when limits do not go together. */
  set limits(limits: AllLimits) {
    checkLimits(limits);
    this.#throttling.limits = limits;
  }

  get levels(): ThrottleLevels {
    return this.#throttling.levels;
  }

  set levels(levels: ThrottleLevels) {
    this.#throttling.levels = levels;
  }

  override get description(): PropertyValues {
    return { limits: { ...this.limits } };
  }

  join(): ThrottleMember {
    return this.#throttling.join();
  }

  override get(name: string): JsonValue {
    if (name === 'limits') return inOrder(this.limits);
    const limit = limitOf(name);
    return limit === undefined ? super.get(name) : this.limits[limit];
  }

  override set(name: string, input: JsonValue): void {
    if (limitOf(name) !== undefined) throw invalid('Property cannot be set after initialization');
    const changes = parseProperty(this.type, name, input) as ThrottleLimits;
    this.limits = withLimits(this.limits, changes);
  }
}

/** In which QEMU tells them, seen of its answers. */
const TOLD_ORDER: readonly ThrottleLimitName[] = [
  ...(['bps-read-max-length', 'iops-read-max-length', 'bps-read-max', 'bps-total'] as const),
  ...(['iops-total-max-length', 'iops-total', 'iops-write-max', 'bps-write', 'bps-total-max'] as const),
  ...(['bps-write-max', 'iops-size', 'iops-read', 'iops-write-max-length', 'iops-write'] as const),
  ...([
    'bps-total-max-length',
    'iops-read-max',
    'bps-read',
    'bps-write-max-length',
    'iops-total-max',
  ] as const),
];

function inOrder(limits: AllLimits): JsonValue {
  return Object.fromEntries(TOLD_ORDER.map((name) => [name, limits[name]]));
}

/** One without limits. */
export function newThrottleGroup(id: string, clock: HostClock): ThrottleGroup {
  return new ThrottleGroup(id, new Throttling(clock));
}

/** x-iops-total and the like: an older way to give each limit by itself. */
function limitOf(property: string): ThrottleLimitName | undefined {
  return THROTTLE_LIMITS.find((name) => property === `x-${name}`);
}

function initialLimits(values: PropertyValues): AllLimits {
  const single = Object.entries(values).filter(([name]) => name !== 'limits');
  const given = Object.fromEntries(single.map(([name, value]) => [name.replace(/^x-/, ''), value]));
  const limits = withLimits(NO_LIMITS, given);
  return withLimits(limits, values['limits'] ?? {});
}

export const THROTTLE_GROUP: ObjectType = {
  name: 'throttle-group',
  parents: ['object'],
  properties: [
    { name: 'limits', qomType: 'ThrottleLimits', type: ThrottleLimits },
    ...THROTTLE_LIMITS.map((name) => ({ name: `x-${name}`, qomType: 'int', type: int64 })),
  ],
  make(id, values, { host }) {
    const group = newThrottleGroup(id, host.clock);
    group.limits = initialLimits(values);
    return group;
  },
};
