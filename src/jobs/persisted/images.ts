import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Graph } from '../../block/graph.js';
import type { Node } from '../../block/node.js';
import { assertNoPlainSecret } from '../../block/plain-secrets.js';
import type { Host } from '../../host/host.js';
import { backupNodes, type BackupPlan, copyUnitBytes } from '../plans/backup.js';
import { commitNodes, type CommitPlan } from '../plans/commit.js';
import { mirrorNodes, type MirrorPlan } from '../plans/mirror.js';
import { nodeOf, type NodeReference } from '../plans/nodes.js';
import { streamNodes, type StreamPlan } from '../plans/stream.js';
import { identityOf, type ImageIdentity } from './image-identity.js';
import type { JournalHead } from './journal-head.js';

/** Those that a journal is kept of. */
export type PersistedPlan = MirrorPlan | BackupPlan | CommitPlan | StreamPlan;

/** Of jobs that go through a disk once: a bit in their journals. */
const GRANULARITY_BYTES = 64 * KiB;
/** A journal's granules are no longer. */
const MAX_GRANULE_BYTES = 64 * MiB;

/** What a job with a journal reads and writes. */
export interface PersistedImages {
  /** What is copied; undefined: what the job copied is known by the target itself. */
  readonly source: Node | undefined;
  /** Those below it that are copied with it. */
  readonly layers: readonly Node[];
  readonly target: Node;
  readonly diskBytes: number;
  readonly granularityBytes: number;
}

/** Errors: those of the plan where it is not true any more. */
export function imagesOf(graph: Graph, plan: PersistedPlan): PersistedImages {
  switch (plan.kind) {
    case 'backup': {
      const { device: source, target } = backupNodes(graph, plan);
      const granularityBytes = copyUnitBytes(plan, target);
      return { source, layers: [], target, diskBytes: source.lengthBytes, granularityBytes };
    }
    case 'commit': {
      const { top: source, base: target } = commitNodes(graph, plan);
      const layers = layersBetween(source, target);
      return { source, layers, target, diskBytes: source.lengthBytes, granularityBytes: GRANULARITY_BYTES };
    }
    case 'stream': {
      const { node: target } = streamNodes(graph, plan);
      const { lengthBytes: diskBytes } = target;
      return { source: undefined, layers: [], target, diskBytes, granularityBytes: GRANULARITY_BYTES };
    }
    default: {
      const { source, target } = mirrorNodes(graph, plan);
      const layers = plan.kind === 'active-commit' ? layersBetween(source, target) : [];
      const { granularityBytes } = plan;
      return { source, layers, target, diskBytes: source.lengthBytes, granularityBytes };
    }
  }
}

function layersBetween(top: Node, base: Node): Node[] {
  const layers: Node[] = [];
  for (let at = top.skipFilters().backingNode(); at && at !== base.skipFilters(); at = at.backingNode())
    layers.push(at);
  return layers;
}

/** What a journal says of a job's images. */
export async function imagesInHead(
  host: Host,
  images: PersistedImages,
): Promise<
  Pick<JournalHead, 'source' | 'target' | 'layers' | 'targetBytes' | 'diskBytes' | 'granularityBytes'>
> {
  const { source, target, layers, diskBytes, granularityBytes } = images;
  const below: ImageIdentity[] = [];
  for (const layer of layers) {
    const image = await identityOf(host, layer);
    if (image) below.push(image);
  }
  return {
    ...{ diskBytes, granularityBytes, layers: below, targetBytes: target.lengthBytes },
    ...given({ source: source && (await identityOf(host, source)), target: await identityOf(host, target) }),
  };
}

/** Errors: invalid, for what no journal helps with. */
export function checkPersists(graph: Graph, plan: PersistedPlan): void {
  for (const { name } of referencesOf(plan)) assertNoPlainSecret(graph.node(name).storage, 'the journal');
  if (plan.kind !== 'backup') return;
  if (plan.sync === 'none')
    throw new BlockError(
      'invalid',
      "A backup with sync mode 'none' never ends: there is nothing to go on with",
    );
  if (plan.discardSource)
    throw new BlockError(
      'invalid',
      "'x-persist' needs what 'discard-source' takes away: the source as it was",
    );
  const { granularityBytes } = imagesOf(graph, plan);
  if (granularityBytes > MAX_GRANULE_BYTES)
    throw new BlockError('limit', 'A journal is kept of copies in units of at most 64 MiB');
}

/** Nodes that got their names by themselves have others after a restart: the same images, where there is one of each. */
export function renameNodes(graph: Graph, plan: PersistedPlan): void {
  for (const reference of referencesOf(plan)) {
    if (!reference.name.startsWith('#') || isThere(graph, reference)) continue;
    const alike = [...graph.nodes.values()].filter((node) =>
      isThere(graph, { ...reference, name: node.name }),
    );
    if (alike.length === 1 && alike[0]) reference.name = alike[0].name;
  }
}

function referencesOf(plan: PersistedPlan): NodeReference[] {
  const all =
    plan.kind === 'backup'
      ? [plan.device, plan.target]
      : plan.kind === 'commit'
        ? [plan.device, plan.top, plan.base]
        : plan.kind === 'stream'
          ? [plan.node, plan.base, plan.bottom]
          : [plan.source, plan.target, plan.lowest, plan.replaces];
  return all.filter((one) => one !== undefined);
}

function isThere(graph: Graph, reference: NodeReference): boolean {
  try {
    nodeOf(graph, reference);
    return true;
  } catch {
    return false;
  }
}

/** Whether the chain is already as the job leaves it: what it committed or pulled up is in it no more. */
export function isChainShortened(graph: Graph, plan: PersistedPlan): boolean {
  try {
    if (plan.kind === 'commit') {
      const device = nodeOf(graph, plan.device);
      return device.isAbove(nodeOf(graph, plan.base)) && !hasImage(device, plan.top);
    }
    if (plan.kind !== 'stream') return false;
    const node = nodeOf(graph, plan.node);
    return plan.bottom !== undefined && !hasImage(node, plan.bottom);
  } catch {
    return false;
  }
}

function hasImage(top: Node, { driver, storage }: NodeReference): boolean {
  for (const node of top.chain())
    if (node.driver.name === driver && node.storage.filename === (storage ?? '')) return true;
  return false;
}
