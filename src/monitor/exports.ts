import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { Node } from '../block/node.js';
import { descriptorNumber } from '../host/descriptor-number.js';
import type { SocketAddress } from '../host/host.js';
import { Waiting } from '../wire/qmp/registry.js';
import type { CommandArguments } from '../schema/commands.js';
import type { Parts } from './parts.js';
import { findNode } from '../block/find-node.js';

/** Of vhost-user-blk. */
const DEFAULT_BLOCK_BYTES = 512;

type Exporting = Parts<'command' | 'graph' | 'exports' | 'takeImages'>;

export function registerExports(engine: Exporting): void {
  const { exports } = engine;
  engine.command('nbd-server-start', (args) => {
    const { addr } = args;
    return exports.startServer(
      socketAddress({ type: addr.type, ...addr.data } as FlatAddress, engine.graph.descriptorOf),
      given({
        maxConnections: args['max-connections'],
        handshakeMaxSeconds: args['handshake-max-seconds'],
        tls: tlsOf(args),
      }),
    );
  });
  engine.command('nbd-server-stop', () => new Waiting(exports.stopServer()));
  engine.command('nbd-server-add', (args) => addNbdExport(engine, args));
  // Its `name` is the export's id, as in QEMU; nbd-server-add makes both the same.
  engine.command('nbd-server-remove', ({ name, mode }) => exports.remove(name, mode ?? 'safe', 'nbd'));
  engine.command('block-export-add', (args) => addExport(engine, args));
  engine.command('block-export-del', ({ id, mode }) => exports.remove(id, mode ?? 'safe'));
  engine.command('query-block-exports', () =>
    exports.list().map(({ id, type, nodeName, shuttingDown }) => ({
      'node-name': nodeName,
      'shutting-down': shuttingDown,
      type,
      id,
    })),
  );
}

/** Who comes in is asked only of those who show who they are. */
export function tlsOf(args: {
  'tls-creds'?: string;
  'tls-authz'?: string;
}): { credentials: string; authz?: string } | undefined {
  const credentials = args['tls-creds'];
  return credentials === undefined ? undefined : { credentials, ...given({ authz: args['tls-authz'] }) };
}

/** QAPI's flat SocketAddress. */
export type FlatAddress =
  | { type: 'inet'; host: string; port: string }
  | { type: 'unix'; path: string; abstract?: boolean }
  | { type: 'fd'; str: string };

/** Errors: kind invalid, in QEMU's words; those of `descriptorOf`. */
export function socketAddress(address: FlatAddress, descriptorOf = descriptorNumber): SocketAddress {
  switch (address.type) {
    case 'unix':
      return { type: 'unix', path: address.abstract === true ? `\0${address.path}` : address.path };
    case 'inet': {
      const port = Number(address.port);
      if (!/^\d+$/.test(address.port) || port > 65535)
        throw new BlockError(
          'invalid',
          `address resolution failed for ${address.host}:${address.port}: Servname not supported for ai_socktype`,
        );
      return { type: 'inet', host: address.host, port };
    }
    case 'fd':
      return { type: 'fd', fd: descriptorOf(address.str) };
  }
}

/**
 * Clients of an export may write before the guest runs here, so the image becomes ours now. One that only reads does
 * without when another process has it still, as in QEMU.
 */
async function makeOurs(engine: Parts<'takeImages'>, node: Node, writable: boolean): Promise<void> {
  const activated = engine.takeImages([node]);
  await (writable ? activated : activated.catch(() => undefined));
}

async function addNbdExport(
  engine: Parts<'graph' | 'exports' | 'takeImages'>,
  args: CommandArguments<'nbd-server-add'>,
): Promise<void> {
  const name = args.name ?? args.device;
  if (!engine.exports.isServing) throw new BlockError('invalid', 'NBD server not running');
  const node = findNode(engine.graph, args.device, args.device);
  const writable = (args.writable ?? false) && !node.readOnly;
  const drive = engine.graph.drives.get(args.device);
  await makeOurs(engine, node, writable);
  await engine.exports.add({
    ...{ id: name, name, node, writable },
    ...given({
      description: args.description,
      bitmaps: args.bitmap === undefined ? undefined : [args.bitmap],
      drive,
    }),
  });
}

/** Threads that users name serve nobody, but must be there. Errors: not-found. */
function checkThread({ graph }: Parts<'graph'>, id: string | undefined): void {
  if (id === undefined || graph.objects.list().some((object) => object.id === id)) return;
  throw new BlockError('not-found', `iothread "${id}" not found`);
}

async function addExport(engine: Exporting, args: CommandArguments<'block-export-add'>): Promise<void> {
  const nodeName = args['node-name'];
  engine.exports.checkNewId(args.id);
  const node = findNode(engine.graph, undefined, nodeName);
  checkThread(engine, args.iothread);
  const writable = args.writable ?? false;
  await makeOurs(engine, node, writable);
  const common = { id: args.id, node, writable, ...given({ writethrough: args.writethrough }) };
  if (args.type === 'vhost-user-blk')
    return engine.exports.addVhostUser({
      ...common,
      address: socketAddress(args.addr, engine.graph.descriptorOf),
      blockSizeBytes: args['logical-block-size'] ?? DEFAULT_BLOCK_BYTES,
      queueCount: args['num-queues'] ?? 1,
    });
  return engine.exports.add({
    ...common,
    name: args.name ?? nodeName,
    ...given({
      description: args.description,
      bitmaps: args.bitmaps,
      allocationDepth: args['allocation-depth'],
    }),
  });
}
