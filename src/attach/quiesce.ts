import type { Graph } from '../block/graph.js';
import type { GuestDevice } from './device.js';

/**
 * For a guest that has just been stopped: after this no request of it is in flight, and all that it wrote is on disk
 * unless a flush fails.
 */
export async function quiesceGuest(graph: Graph, devices: Iterable<GuestDevice>): Promise<void> {
  const nodes = [...devices].flatMap(({ backend }) => backend.root?.node ?? []);
  // Jobs pause too, as QEMU's do.
  await graph.drained(graph.nodesInUse(), async () => {
    // The guest is stopped all the same, and hears of it at its own next flush.
    for (const node of new Set(nodes)) if (node.isWritable) await node.io.flush().catch(() => undefined);
  });
}
