import { BlockError } from '../../base/error.js';
import { findBackingImage, filesBelow } from '../../block/find-node.js';
import type { Node } from '../../block/node.js';
import type { Opener } from '../../block/open.js';
import { type BaseProtection, checkSharers } from '../../block/shared-bases.js';
import type { Job } from '../../jobs/job.js';
import { JobManager } from '../../jobs/manager.js';
import { planCommit } from '../../jobs/plans/commit.js';
import { NO_PROGRESS, type OnProgress } from './progress.js';

const JOB_ID = 'commit';
/** How often progress is told. */
const PROGRESS_MS = 100;

export interface CommitOptions {
  /** What is committed into; default: the next layer. */
  base?: Node | undefined;
  /** What is committed stays in the image too; else it is empty afterwards, where its format can be emptied. */
  keep?: boolean;
  /** What becomes of it when other images stand on what it changes; default: nobody looks. */
  protection?: BaseProtection | undefined;
  /** Told of them where they do not keep it from being done. */
  onSharers?: (text: string) => void;
  /** Bytes per second; 0: as fast as it goes. */
  bytesPerSecond?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal | undefined;
}

/** The image in the chain of `top` that a file name means, if any; see findBackingImage. */
export async function findInChain(
  opener: Opener,
  top: Node,
  filename: string,
  options: { asShown?: boolean } = {},
): Promise<Node | undefined> {
  return findBackingImage(top, filename, await filesBelow(opener.graph, top.name, [filename]), options);
}

/**
 * Brings what an image and the layers down to the base hold into the base, which is durable before the image is emptied.
 * Errors: invalid without a backing file; cancelled; those of a commit job.
 */
export async function commitImage(opener: Opener, top: Node, options: CommitOptions = {}): Promise<void> {
  const { onProgress = NO_PROGRESS, bytesPerSecond = 0, signal } = options;
  const base = options.base ?? top.backingNode();
  if (!base) throw new BlockError('invalid', 'Image does not have a backing file');
  if (options.protection) {
    const told = await checkSharers(opener, { device: top, top, base }, options.protection);
    if (told !== undefined) options.onSharers?.(told);
  }
  // Caught up, it ends: nobody moves to the base, and it holds all that is asked for.
  const end = (event: string): void => {
    if (event === 'BLOCK_JOB_READY') void jobs.find(JOB_ID)?.cancel({ force: false, softOnReady: true });
  };
  const jobs = new JobManager(opener, end);
  const request = { device: top.name, 'base-node': base.name, 'job-id': JOB_ID, speed: bytesPerSecond };
  const job = await jobs.start(planCommit(opener.graph, request));
  await finished(opener, job, onProgress, signal);
  if (options.keep !== true) await top.instance.makeEmpty?.().finally(() => top.contentReplaced());
}

async function finished(
  { host: { clock } }: Opener,
  job: Job,
  onProgress: OnProgress,
  signal: AbortSignal | undefined,
): Promise<void> {
  const tell = (): void => {
    const { doneBytes, remainingBytes } = job.progress();
    onProgress(doneBytes, doneBytes + remainingBytes);
  };
  let timer = clock.setTimer(PROGRESS_MS, function tick() {
    tell();
    timer = clock.setTimer(PROGRESS_MS, tick);
  });
  try {
    await job.result({ ...(signal && { signal }) });
    tell();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `Block job failed: ${error.message}`, { cause: error });
  } finally {
    timer.cancel();
  }
}
