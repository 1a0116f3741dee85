import { MiB } from '../../base/limits.js';
import type { ClusterMap } from '../cluster-map.js';
import { humanBytes } from '../progress-meter.js';
import type { Plan, Room } from './types.js';

/** What a copy is guessed to move. */
const BYTES_PER_SECOND = 200 * MiB;

/** Whole seconds that a copy is guessed to take. */
export function copySeconds(bytes: number): number {
  return Math.ceil(bytes / BYTES_PER_SECOND);
}

/** The plan with the bytes that are copied, as the map of `plan.copies.image` tells: what other layers hide is not. */
export function withMap(plan: Plan, map: ClusterMap): Plan {
  const { copies } = plan;
  if (!copies) return plan;
  let bytes = 0;
  for (const { layer, isZero, lengthBytes } of map.extents)
    if (!isZero && layer !== undefined && layer >= copies.first && layer < copies.end) bytes += lengthBytes;
  return { ...plan, bytes };
}

/** What a copy takes, in words; nothing where there is none. */
export function copyText({ bytes, bytesAtMost }: Pick<Plan, 'bytes' | 'bytesAtMost'>): string | undefined {
  if (bytesAtMost === 0) return undefined;
  const isKnown = bytes !== undefined;
  const amount = `${humanBytes(bytes ?? bytesAtMost)} are copied${isKnown ? '' : ' at most'}`;
  const seconds = copySeconds(bytes ?? bytesAtMost);
  return `${amount}, in ${seconds <= 1 ? 'a second or less' : `about ${seconds} s`} at 200 MiB a second.`;
}

export function roomText({ path, neededBytes, freeBytes }: Room): string {
  return `'${path}' grows by ${humanBytes(neededBytes)}; ${humanBytes(freeBytes)} are free there.`;
}
