import { given } from '../../base/given.js';
import { KiB, MiB } from '../../base/limits.js';
import type { Graph } from '../../block/graph.js';
import { hasProtocol } from '../../block/filename.js';
import type { Node } from '../../block/node.js';
import type { DryRun } from './report.js';

/** Reads that show how long an answer takes, and reads that show how much comes a second. */
const SMALL_READS = 4;
const LARGE_READS = 8;
const LARGE_BYTES = 512 * KiB;
/** How much of a target is looked through for data. */
const MOST_LOOKED_BYTES = 64 * 1024 * MiB;
/** A peer that is silent for so long counts as gone. */
const PATIENCE_MS = 10_000;

export type Link = NonNullable<DryRun['link']>;

export type Probed = { readonly link?: Link; readonly refused?: string };

/** How fast a target over a network answers, by reading from it; nothing where it is on this machine. */
export async function probeLink(graph: Graph, target: Node): Promise<Probed> {
  const { storage } = target;
  if (!hasProtocol(storage.filename) || storage.lengthBytes === 0) return {};
  const { clock } = graph.host;
  const name = storage.filename;
  let timer: { cancel: () => void } | undefined;
  const silent = new Promise<Probed>((resolve) => {
    const refused = `'${name}' has not answered for ${PATIENCE_MS / 1000} seconds`;
    timer = clock.setTimer(PATIENCE_MS, () => resolve({ refused }));
  });
  const asked = probe(graph, storage).then(
    (link): Probed => ({ link }),
    (error: Error): Probed => ({ refused: `'${name}' does not answer: ${error.message}` }),
  );
  const probed = await Promise.race([asked, silent]);
  timer?.cancel();
  return probed;
}

async function probe({ host: { clock } }: Graph, target: Node): Promise<Link> {
  const unit = Math.min(target.lengthBytes, 4 * KiB);
  let roundTripMs = Infinity;
  for (let i = 0; i < SMALL_READS; i++) {
    const begunMs = clock.nowMs();
    await target.io.readBuffer(0, Buffer.alloc(unit));
    roundTripMs = Math.min(roundTripMs, clock.nowMs() - begunMs);
  }
  const at = await firstData(target);
  const rate = at === undefined ? undefined : await rateOf(target, at, () => clock.nowMs());
  return { node: target.name, 'round-trip': Math.ceil(roundTripMs * 1000), ...given({ rate }) };
}

/** Where data begins of which a large piece can be read: holes come without their bytes. */
async function firstData(target: Node): Promise<number | undefined> {
  const end = Math.min(target.lengthBytes - LARGE_BYTES, MOST_LOOKED_BYTES);
  for (let at = 0; at <= end;) {
    const status = await target.statusThroughChain(at, target.lengthBytes - at);
    if (status.data && !status.zero && status.lengthBytes >= LARGE_BYTES) return at;
    at += status.lengthBytes;
  }
  return undefined;
}

async function rateOf(target: Node, at: number, nowMs: () => number): Promise<number | undefined> {
  const begunMs = nowMs();
  const offsets = Array.from({ length: LARGE_READS }, (_, i) => at + i * LARGE_BYTES);
  const inside = offsets.filter((offset) => offset + LARGE_BYTES <= target.lengthBytes);
  await Promise.all(inside.map((offset) => target.io.readBuffer(offset, Buffer.alloc(LARGE_BYTES))));
  const tookMs = nowMs() - begunMs;
  return tookMs > 0 ? Math.floor((inside.length * LARGE_BYTES * 1000) / tookMs) : undefined;
}
