import { assert } from '../../src/base/assert.js';
import type { BlockBackend } from '../../src/block/backend.js';
import { Flag, hasFlag } from '../../src/block/request.js';
import type { Job } from '../../src/jobs/job.js';
import type { JobBench } from './job-bench.js';
import { AT_ONCE, type MemoryBehaviour, type MemoryImage, newMemoryImage } from './memory-layer.js';
import { type MirrorArguments, startMirror } from './start-job.js';

/** Cluster size and size of the disks, in bytes. */
export const CLUSTER = 4096;
export const DISK = 64 * CLUSTER;

/** Fills clusters of an image, each with some byte of its own. */
export async function fill(bench: JobBench, image: MemoryImage, below: (n: number) => number): Promise<void> {
  const backend = await bench.guest(image.node);
  for (let at = 0; at < image.node.lengthBytes; at += CLUSTER)
    if (below(3) > 0) await backend.write(at, Buffer.alloc(CLUSTER, 1 + below(255)));
  const { root } = backend;
  assert(root, 'a guest has a disk');
  await bench.graph.transaction((transaction) => transaction.detach(root));
}

/** Lets others run for so many turns of the event loop. */
export const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
};

/** A disk of data, mirrored into an image whose writes fail while `fault` has an errno; READY. */
export async function readyMirror(
  bench: JobBench,
  more: Partial<MirrorArguments> = {},
  sizeBytes = DISK,
): Promise<{
  top: MemoryImage;
  target: MemoryImage;
  guest: BlockBackend;
  job: Job;
  fault: { errno?: string };
}> {
  const options = { lengthBytes: sizeBytes, clusterBytes: CLUSTER };
  const top = await newMemoryImage(bench.graph, 'top', options);
  const fault: { errno?: string } = {};
  const behaviour: MemoryBehaviour = {
    ...AT_ONCE,
    fault: (operation) => (operation === 'write' ? fault.errno : undefined),
  };
  const target = await newMemoryImage(bench.graph, 'target', { ...options, behaviour });
  const guest = await bench.guest(top.node);
  await guest.write(0, Buffer.alloc(sizeBytes, 1));
  const job = await startMirror(bench, {
    jobId: 'job0', device: top.node, target: target.node, sync: 'full', targetIsNew: true, ...more,
  }); // prettier-ignore
  await bench.until('BLOCK_JOB_READY');
  return { top, target, guest, job, fault };
}

/** Whether each zeroing of an image from now on may unmap. */
export function zeroings({ layer: { map } }: MemoryImage): boolean[] {
  const seen: boolean[] = [];
  const zeroClusters = map.zeroClusters.bind(map);
  map.zeroClusters = (offset, lengthBytes, flags) => {
    seen.push(hasFlag(flags, Flag.mayUnmap));
    return zeroClusters(offset, lengthBytes, flags);
  };
  return seen;
}
