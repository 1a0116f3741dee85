import type { BlockBackend } from '../block/backend.js';
import { holdIntermediate } from './commit.js';
import { ALL_PERMISSIONS, type JobPlace, Permission } from './job-graph.js';
import type { MirrorNodes } from './plans/mirror.js';

/** What a mirror copies between. */
export interface MirrorSides {
  readonly source: BlockBackend;
  readonly target: BlockBackend;
}

/** Takes what the job needs of its images: of an active commit of all of them down to the base. Errors: busy. */
export function holdSides(
  place: JobPlace,
  { source, target }: MirrorNodes,
  targetIsBase: boolean,
): MirrorSides {
  const { consistentRead, write, writeUnchanged, resize } = Permission;
  place.hold('main node', place.filter, consistentRead, consistentRead + writeUnchanged + write);
  const sourceBackend = place.filterChild('file', source, 0, ALL_PERMISSIONS);
  const isToGrow = targetIsBase && target.lengthBytes < source.lengthBytes;
  // What is copied in part only is for nobody to read, unless it is the base that was right before.
  const targetBackend = place.backend(
    target,
    write + (isToGrow ? resize : 0),
    writeUnchanged + (targetIsBase ? consistentRead + write : 0),
  );
  place.hold('source', source, 0, consistentRead + writeUnchanged + write);
  place.hold('target', target, 0, ALL_PERMISSIONS);
  const below = source.below?.node;
  if (targetIsBase && below) holdIntermediate(place, below, target);
  return { source: sourceBackend, target: targetBackend };
}
