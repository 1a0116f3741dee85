import { BlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import type { NbdTarget } from '../wire/nbd/target.js';
import { MAX_NAMED_QUEUES } from '../wire/vhost-user/constants.js';
import { VhostServer } from '../wire/vhost-user/server.js';
import type { BlockExportProperties, BlockTarget } from '../wire/vhost-user/target.js';

const MIN_BLOCK_BYTES = 512;
const MAX_BLOCK_BYTES = 2 * 1024 * 1024;
/** What GET_ID answers, as with QEMU's export. */
const SERIAL = 'vhost_user_blk';

export interface VhostUserProperties {
  id: string;
  node: Node;
  writable: boolean;
  writethrough?: boolean;
  address: SocketAddress;
  blockSizeBytes: number;
  queueCount: number;
}

/** Serves a node over vhost-user. Errors: invalid, in QEMU's words; those of listening. */
export async function listenVhostUser(
  graph: Graph,
  properties: VhostUserProperties,
  target: BlockBackend,
  lost: LostChanges,
): Promise<VhostServer> {
  const { id, writable, address, blockSizeBytes, queueCount } = properties;
  checkBlockSize(id, blockSizeBytes);
  if (queueCount === 0) throw new BlockError('invalid', 'num-queues must be greater than 0');
  return serveVhostUser(graph, address, {
    ...{ target, lost, writable, queueCount, serial: SERIAL, label: `export '${id}'` },
    blockSizeBytes: blockSizeBytes === 0 ? MIN_BLOCK_BYTES : blockSizeBytes,
  });
}

export interface VhostUserDisk extends Omit<BlockExportProperties, 'lost'> {
  readonly target: BlockTarget & NbdTarget;
  readonly lost: LostChanges;
  /** What it is called in lines about its peers. */
  readonly label: string;
}

/** Serves a disk. Errors: invalid, in QEMU's words; those of listening. */
export async function serveVhostUser(
  graph: Graph,
  address: SocketAddress,
  { label, lost, ...disk }: VhostUserDisk,
): Promise<VhostServer> {
  // QEMU takes more, which no message of the protocol can name.
  if (disk.queueCount > MAX_NAMED_QUEUES)
    throw new BlockError('invalid', `num-queues must not be greater than ${MAX_NAMED_QUEUES}`);
  if (address.type === 'inet')
    throw new BlockError('invalid', "Only socket address types 'unix' and 'fd' are supported");
  const { target } = disk;
  return VhostServer.listen(graph.host, address, {
    disk: {
      ...disk,
      lost: {
        add: (change) => lost.add(target, change),
        overlapping: (offset, lengthBytes) => lost.overlapping(target, offset, lengthBytes),
      },
    },
    onBroken: (text) => graph.onDriverLine(`vhost-user: ${label}: ${text}`),
  });
}

function checkBlockSize(id: string, blockSizeBytes: number): void {
  // It stands for the least, as in QEMU.
  if (blockSizeBytes === 0) return;
  if (blockSizeBytes < MIN_BLOCK_BYTES || blockSizeBytes > MAX_BLOCK_BYTES) {
    const text = `doesn't take value ${blockSizeBytes} (minimum: ${MIN_BLOCK_BYTES}, maximum: ${MAX_BLOCK_BYTES})`;
    throw new BlockError('invalid', `Property ${id}.logical-block-size ${text}`);
  }
  if (Number.isInteger(Math.log2(blockSizeBytes))) return;
  const text = `doesn't take value '${blockSizeBytes}', it's not a power of 2`;
  throw new BlockError('invalid', `Property ${id}.logical-block-size ${text}`);
}
