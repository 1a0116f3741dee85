import { BlockError } from '../../../base/error.js';
import type { CompactOptions, ImageCompaction } from '../../../block/driver.js';
import { planRepairs } from '../check/check.js';
import { applyRepairs } from '../check/repair.js';
import type { OpenImage } from '../open-image.js';
import { changeRefcountWidth } from '../space/refcount-width.js';
import { carryOut } from './carry-out.js';
import { dropsOf, type Moves, planMoves } from './plan.js';
import { readStructure, type Structure } from './pointer-tables.js';
import { type Survey, survey, Use } from './survey.js';

/** Clusters of a file that one round moves at most, which bounds memory. */
const ROUND_CLUSTERS = 2 ** 18;

interface Looked {
  structure: Structure;
  survey: Survey;
  leaks: number;
}

/**
 * Moves what lies at the end of an image's file into free places, and cuts the file; durable on return. Each round begins
 * with an image that was checked and ends with one that is whole, so a compaction may be broken off and begun again.
 * `open`: opens the image to be repaired. Errors: corrupt, unsupported; those of reading and writing.
 */
export async function compactImage(
  open: () => Promise<OpenImage>,
  { isDryRun = false, onProgress = () => undefined }: CompactOptions,
): Promise<ImageCompaction> {
  let image = await open();
  checkCan(image);
  const formerBytes = image.context.meta.lengthBytes;
  const first = await look(image);
  const total = clustersBehind(first.survey);
  const { clusterBytes } = first.survey;
  const leakedBytes = first.leaks * clusterBytes;
  if (isDryRun) return { formerBytes, leakedBytes, ...foreseen(first.survey, formerBytes) };
  await image.context.beginChanges();
  if (first.leaks > 0 || image.context.isDirty) await freeLeaks(image);
  let done = 0;
  for (let haveRefcountsMoved = false; ;) {
    image = await open();
    const looked = await look(image);
    await cut(image, looked.survey.endCluster);
    if (!haveRefcountsMoved && refcountsAreBehind(looked.survey)) {
      await changeRefcountWidth(image, image.context.header.refcountOrder);
      haveRefcountsMoved = true;
      continue;
    }
    haveRefcountsMoved = false;
    const moves = planMoves(looked.survey, roundStart(looked.survey));
    if (moves.counts.size === 0) break;
    await carryOut(image, open, { ...looked, moves }, (clusters) => {
      done += clusters;
      onProgress(done, Math.max(done, total));
    });
  }
  return {
    formerBytes,
    leakedBytes,
    movedBytes: done * clusterBytes,
    lengthBytes: image.context.meta.lengthBytes,
  };
}

/** Errors: unsupported. */
function checkCan({ context }: OpenImage): void {
  if (!context.l2.hasDataFile) return;
  const why = 'Its data is in another file, where each cluster has its place: there is nothing to compact';
  throw new BlockError('unsupported', why, { errno: 'ENOTSUP' });
}

/** Errors: kind corrupt, where something is wrong with it but for leaks. */
async function look(image: OpenImage): Promise<Looked> {
  const { meta, isMarkedCorrupt } = image.context;
  const plan = await planRepairs(meta, 'none');
  if (isMarkedCorrupt || !plan.isClean)
    throw new BlockError('corrupt', 'The image has errors: it is to be repaired first (check -r all)');
  const structure = await readStructure(meta, image.context.header);
  const { references } = plan;
  const parts = { structure, references, refcounts: image.refcounts };
  return { structure, survey: await survey(meta, parts), leaks: plan.result.leaks };
}

async function freeLeaks(image: OpenImage): Promise<void> {
  await applyRepairs(image, await planRepairs(image.context.meta, 'leaks'));
}

/** Of what is used, how many clusters lie where nothing has to. */
function clustersBehind({ uses, usedClusters, endCluster }: Survey): number {
  let count = 0;
  for (let cluster = usedClusters; cluster < endCluster; cluster++)
    if ((uses[cluster] ?? 0) > Use.uncounted) count++;
  return count;
}

/** From where on a round moves what there is. */
function roundStart({ uses, usedClusters, endCluster }: Survey): number {
  let count = 0;
  let cluster = endCluster;
  while (cluster > usedClusters && count < ROUND_CLUSTERS)
    if ((uses[--cluster] ?? 0) > Use.uncounted) count++;
  return cluster;
}

function refcountsAreBehind({ uses, usedClusters }: Survey): boolean {
  return uses.includes(Use.refcounts, usedClusters);
}

/** What a compaction would do. Refcounts are written anew, wherever there is room. */
function foreseen(looked: Survey, formerBytes: number): Pick<ImageCompaction, 'movedBytes' | 'lengthBytes'> {
  const { clusterBytes, uses } = looked;
  const movable = { ...looked, uses: uses.map((use) => (use === Use.refcounts ? Use.metadata : use)) };
  const start = roundStart(movable);
  // Of more than one round only the first is planned: what stands in the way is at the end.
  const moves: Moves = planMoves(movable, start);
  const later = start > looked.usedClusters;
  const movedClusters = later ? clustersBehind(looked) : dropsOf(movable, moves).size;
  const endCluster = later ? looked.usedClusters : moves.endCluster;
  return {
    movedBytes: movedClusters * clusterBytes,
    lengthBytes: Math.min(formerBytes, endCluster * clusterBytes),
  };
}

/** Nothing is behind the last cluster in use. */
async function cut({ context }: OpenImage, endCluster: number): Promise<void> {
  const { meta, clusterBytes } = context;
  const lengthBytes = endCluster * clusterBytes;
  if (meta.lengthBytes <= lengthBytes || meta.hasFixedLength === true) return;
  await meta.truncate(lengthBytes);
  await meta.flush();
}
