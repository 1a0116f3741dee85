import { registerBitmaps } from './bitmaps.js';
import { registerBlockdev } from './blockdev.js';
import { registerDescriptors } from './descriptors.js';
import type { EngineParts as Engine } from './parts.js';
import { registerDevices } from './devices.js';
import { registerMedia } from './media.js';
import { registerExports } from './exports.js';
import { registerGraphChanges } from './graph-changes.js';
import { registerHmp } from './hmp.js';
import { registerInternalSnapshots } from './internal-snapshots.js';
import { registerIoThrottle } from './io-throttle.js';
import { registerLatencyHistogram } from './latency-histogram.js';
import { registerJobs } from './jobs.js';
import { registerMachine } from './machine.js';
import { registerMirrorAndBackup } from './mirror-backup.js';
import { registerObjects } from './objects.js';
import { registerQueries } from './query.js';
import { registerRunState } from './run-state.js';
import { registerSnapshots } from './snapshot.js';
import { registerStreamAndCommit } from './stream-commit.js';
import { registerTransaction } from './transaction.js';
import { registerYank } from './yank.js';

/** Every family of commands. A storage daemon has no guest, so it lacks what is about one. */
export function registerCommands(engine: Engine): void {
  registerBlockdev(engine);
  registerSnapshots(engine);
  registerStreamAndCommit(engine);
  registerMirrorAndBackup(engine);
  registerJobs(engine);
  registerBitmaps(engine);
  registerInternalSnapshots(engine);
  registerGraphChanges(engine);
  registerTransaction(engine);
  registerExports(engine);
  registerObjects(engine);
  registerQueries(engine);
  registerRunState(engine);
  if (engine.kind !== 'machine') return;
  registerDevices(engine);
  registerMedia(engine);
  registerIoThrottle(engine);
  registerLatencyHistogram(engine);
  registerMachine(engine);
  registerDescriptors(engine);
  registerYank(engine);
  registerHmp(engine);
}
