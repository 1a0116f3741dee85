import { BlockError } from '../../base/error.js';
import type { Settings } from '../../block/driver.js';
import type { QCOW2_OPTIONS } from '../../schema/blockdev-options.js';

/** Why clusters become free: a guest or job discards them, a snapshot goes, or something else moves. */
export type DiscardCause = 'request' | 'snapshot' | 'other';

/** Of which causes the file hears. */
export interface DiscardSettings {
  /** Undefined: where discards reach the image at all. */
  readonly request: boolean | undefined;
  readonly snapshot: boolean;
  readonly other: boolean;
  /** What is discarded keeps its cluster: the file's blocks go, and the image does not become fragmented. */
  readonly keepsClusters: boolean;
}

export function discardSettings(settings: Settings<typeof QCOW2_OPTIONS>): DiscardSettings {
  return {
    request: settings['pass-discard-request'],
    snapshot: settings['pass-discard-snapshot'],
    other: settings['pass-discard-other'],
    keepsClusters: settings['discard-no-unref'],
  };
}

/** What an image of that version cannot be opened with. Errors: invalid, in QEMU's words. */
export function checkVersion(settings: Settings<typeof QCOW2_OPTIONS>, version: number): void {
  if (version >= 3) return;
  if (settings['lazy-refcounts'] === true)
    throw invalid('Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level');
  if (settings['discard-no-unref']) throw invalid('discard-no-unref is only supported since qcow2 version 3');
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message, { errno: 'EINVAL' });
}
