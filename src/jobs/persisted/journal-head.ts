import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import { type ImageIdentity, isImageIdentity } from './image-identity.js';

export type JournalState =
  | 'running'
  /** It had failed, or was cancelled. */
  | 'failed'
  /** All was copied; from here on guests may write to the target, and images may name others as their backing files. */
  | 'ending'
  | 'completed';

/** What stands in a journal's head. */
export interface JournalHead {
  state: JournalState;
  error?: string;
  plan: JsonObject;
  diskBytes: number;
  granularityBytes: number;
  /** Of the source's and the target's storage; absent where there is no file. */
  source?: ImageIdentity;
  target?: ImageIdentity;
  /** The layers below the source that are copied with it. */
  layers?: ImageIdentity[];
  /** How long the target was when the job began. */
  targetBytes?: number;
  /** When the job began: a backup's point in time. */
  begunMs: number;
  /** When the journal was told last that the job lives; milliseconds since 1970. */
  aliveMs: number;
}

export function wallMs({ clock }: Host): number {
  const { seconds, microseconds } = clock.wallClock();
  return seconds * 1000 + microseconds / 1000;
}

export function asJson(head: JournalHead): JsonObject {
  return head as unknown as JsonObject;
}

/** Numbers beyond what JSON has are as good as no limit. */
export function speedInPlan(bytesPerSecond: number | bigint): number {
  return bytesPerSecond > Number.MAX_SAFE_INTEGER ? 0 : Number(bytesPerSecond);
}

/** The id in a plan; undefined: it has none. */
export function idIn({ jobId }: JsonObject): string | undefined {
  return typeof jobId === 'string' ? jobId : undefined;
}

/** Errors: corrupt. What the plan says is checked by who uses it. */
export function headOf(json: JsonObject): JournalHead {
  const { state, plan, diskBytes, granularityBytes, aliveMs, begunMs, source, target, layers, targetBytes } =
    json;
  const isSound =
    ['running', 'failed', 'ending', 'completed'].includes(state as string) &&
    typeof plan === 'object' &&
    plan !== null &&
    idIn(plan as JsonObject) !== undefined &&
    [diskBytes, granularityBytes, aliveMs, begunMs, targetBytes ?? 0].every(
      (value) => typeof value === 'number',
    ) &&
    [source, target].every((image) => image === undefined || isImageIdentity(image)) &&
    (layers === undefined || (Array.isArray(layers) && layers.every(isImageIdentity)));
  if (!isSound) throw new BlockError('corrupt', 'The journal does not say what its job is');
  return json as unknown as JournalHead;
}
