import { SECTOR_BYTES } from '../disk/layout.js';
import { type Stream, type Survey, Use } from './survey.js';

/** Where what lies at the end of an image's file is to lie from now on. Clusters are the file's. */
export interface Moves {
  /** Where each moved cluster goes. */
  readonly clusters: ReadonlyMap<number, number>;
  /** Where compressed data goes, by where it lies: host offsets. */
  readonly streams: ReadonlyMap<number, { readonly stream: Stream; readonly hostOffset: number }>;
  /** Refcounts of the new places, which are free now. */
  readonly counts: ReadonlyMap<number, number>;
  /** Nothing lies from there on afterwards. */
  readonly endCluster: number;
}

/** Something has no room below the bound: what takes so many clusters, or a table that ends there. */
type Obstacle = { clusters: number } | { endCluster: number };

/**
 * Chooses what moves, of what lies from `fromCluster` on and behind as many clusters as are in use, so that nothing is behind
 * the end of the rest afterwards; in the order in which it lies, to the first free places. What stays where it is bounds
 * that. Errors: none; what there is no room for stays.
 */
export function planMoves(survey: Survey, fromCluster: number): Moves {
  let bound = Math.max(fromCluster, survey.streamsFrom, survey.usedClusters, lastFixed(survey) + 1);
  for (;;) {
    const plan = new Plan(survey, bound);
    const obstacle = plan.make();
    if (!obstacle) return plan;
    // Each cluster more has one thing less to move, or is one place more.
    bound = 'clusters' in obstacle ? bound + obstacle.clusters : obstacle.endCluster;
  }
}

function lastFixed({ uses, endCluster }: Survey): number {
  for (let cluster = endCluster - 1; cluster > 0; cluster--) {
    const use = uses[cluster];
    if (use === Use.unnamed || use === Use.mixed || use === Use.refcounts) return cluster;
  }
  return 0;
}

/** All that is from `bound` on goes below it. */
class Plan implements Moves {
  readonly clusters = new Map<number, number>();
  readonly streams = new Map<number, { stream: Stream; hostOffset: number }>();
  readonly counts = new Map<number, number>();
  readonly endCluster: number;
  /** New places of compressed data. */
  readonly #packed = new Set<number>();
  readonly #survey: Survey;
  readonly #bound: number;
  /** Below this no cluster is free. */
  #firstFree = 1;

  constructor(survey: Survey, bound: number) {
    this.endCluster = Math.min(bound, survey.endCluster);
    this.#survey = survey;
    this.#bound = bound;
  }

  make(): Obstacle | undefined {
    return this.#moveTables() ?? this.#moveStreams() ?? this.#moveClusters();
  }

  #isFree(cluster: number): boolean {
    return cluster < this.#bound && this.#survey.uses[cluster] === Use.free && !this.counts.has(cluster);
  }

  /** The first free cluster. */
  #findFree(): number | undefined {
    while (this.#firstFree < this.#bound && !this.#isFree(this.#firstFree)) this.#firstFree++;
    return this.#firstFree < this.#bound ? this.#firstFree : undefined;
  }

  #moveTables(): Obstacle | undefined {
    for (const [first, count] of [...this.#survey.tables].sort(([a], [b]) => a - b)) {
      if (first + count <= this.#bound) continue;
      const start = this.#findRun(count, first);
      if (start === undefined) return { endCluster: first + count };
      for (let i = 0; i < count; i++) this.#move(first + i, start + i);
    }
    return undefined;
  }

  /** The first so many free clusters that lie one behind the other and before `end`. */
  #findRun(count: number, end: number): number | undefined {
    for (let start = this.#firstFree, at = start; at < end; at++) {
      if (!this.#isFree(at)) start = at + 1;
      else if (at + 1 - start === count) return start;
    }
    return undefined;
  }

  #move(from: number, to: number): void {
    this.clusters.set(from, to);
    this.counts.set(to, this.#survey.references.get(from));
  }

  #moveClusters(): Obstacle | undefined {
    const { uses, endCluster } = this.#survey;
    let missing = 0;
    for (let cluster = this.#bound; cluster < endCluster; cluster++) {
      const use = uses[cluster];
      if (use !== Use.data && use !== Use.metadata) continue;
      const place = this.#findFree();
      if (place === undefined) missing++;
      else this.#move(cluster, place);
    }
    return missing === 0 ? undefined : { clusters: missing };
  }

  /** Streams keep their places within a sector, so that they take no more sectors than they do, and what they share. */
  #moveStreams(): Obstacle | undefined {
    const { clusterBytes, streams } = this.#survey;
    let before: { stream: Stream; hostOffset: number } | undefined;
    let missingBytes = 0;
    for (const stream of streams) {
      if (stream.hostOffset + stream.lengthBytes <= this.#bound * clusterBytes) continue;
      const hostOffset = missingBytes > 0 ? undefined : this.#placeOf(stream, before);
      if (hostOffset === undefined) missingBytes += stream.lengthBytes;
      else {
        before = { stream, hostOffset };
        this.streams.set(stream.hostOffset, before);
      }
    }
    return missingBytes === 0 ? undefined : { clusters: Math.ceil(missingBytes / clusterBytes) };
  }

  #placeOf(stream: Stream, before?: { stream: Stream; hostOffset: number }): number | undefined {
    const within = stream.hostOffset % SECTOR_BYTES;
    if (before) {
      const endOf = before.hostOffset + before.stream.lengthBytes;
      const distance = stream.hostOffset - before.stream.hostOffset;
      const shares = distance < before.stream.lengthBytes;
      const behind = this.#tryStream(stream, shares ? before.hostOffset + distance : endOf + within);
      if (behind !== undefined) return behind;
    }
    // The first of the free clusters where so many lie one behind the other as it takes, which are two at most.
    const { clusterBytes } = this.#survey;
    for (let start = this.#findFree(); start !== undefined && start < this.#bound; start++) {
      const place = this.#isFree(start) ? this.#tryStream(stream, start * clusterBytes + within) : undefined;
      if (place !== undefined) return place;
    }
    return undefined;
  }

  /** There, where all the clusters are free or can count it too. */
  #tryStream({ lengthBytes, references }: Stream, hostOffset: number): number | undefined {
    const { clusterBytes, mostReferences } = this.#survey;
    const first = Math.floor(hostOffset / clusterBytes);
    const end = Math.ceil((hostOffset + lengthBytes) / clusterBytes);
    for (let cluster = first; cluster < end; cluster++) {
      const isOurs = this.#packed.has(cluster);
      const count = (isOurs ? (this.counts.get(cluster) ?? 0) : 0) + references;
      if ((!isOurs && !this.#isFree(cluster)) || count > mostReferences) return undefined;
    }
    for (let cluster = first; cluster < end; cluster++) {
      this.counts.set(cluster, (this.counts.get(cluster) ?? 0) + references);
      this.#packed.add(cluster);
    }
    return hostOffset;
  }
}

/** How much less each cluster counts where something has moved away. */
export function dropsOf({ references, clusterBytes }: Survey, moves: Moves): Map<number, number> {
  const drops = new Map<number, number>();
  for (const cluster of moves.clusters.keys()) drops.set(cluster, references.get(cluster));
  for (const { stream } of moves.streams.values()) {
    const end = Math.ceil((stream.hostOffset + stream.lengthBytes) / clusterBytes);
    for (let cluster = Math.floor(stream.hostOffset / clusterBytes); cluster < end; cluster++)
      drops.set(cluster, (drops.get(cluster) ?? 0) + stream.references);
  }
  return drops;
}
