import { given } from '../../base/given.js';
import type { BlockBackend } from '../../block/backend.js';
import type { Json } from '../../block/driver.js';
import { describeNodes, withoutJobs } from '../../block/node-state.js';
import type { Node } from '../../block/node.js';
import type { ExportProperties } from '../../attach/exports.js';
import type { GuestDevice } from '../../attach/device.js';
import type { SocketAddress } from '../../host/host.js';
import type { EngineState } from '../../schema/state.js';
import type { Parts } from '../parts.js';

export type Described = Parts<
  | 'kind'
  | 'graph'
  | 'machine'
  | 'identity'
  | 'actions'
  | 'baseProtection'
  | 'runState'
  | 'drives'
  | 'devices'
  | 'exports'
  | 'characterDevices'
  | 'jobs'
  | 'moves'
>;

/** What a program knows of a daemon besides its engine. */
export type ProgramState = Pick<EngineState, 'askedDigest' | 'monitors' | 'isMultiplexed'>;

type DiskState = EngineState['drives'][number];

/**
 * What a daemon is at this moment; jobs and their filters are left out, but for those that can be gone on with. `jobNodes`:
 * jobs go on with what they use.
 */
export function describeEngine(
  engine: Described,
  program: ProgramState,
  jobNodes?: Iterable<Node>,
): EngineState {
  const { graph, identity, actions, baseProtection } = engine;
  const nodes = describeNodes(graph, usersOf(engine), jobNodes);
  const open = nodes.map(({ name }) => graph.node(name));
  return {
    kind: engine.kind,
    machine: engine.machine.type,
    ...given({ name: identity.name, uuid: identity.uuid, memoryBytes: identity.memoryBytes }),
    status: statusOf(engine),
    reboot: actions.reboot,
    shutdown: actions.shutdown,
    protectsSharedBases: baseProtection.refuses,
    sharedBasesFolders: [...baseProtection.folders],
    ...program,
    objects: graph.objects
      .list()
      .map(({ id, type, description }) => ({ id, type: type.name, options: description })),
    nodes,
    writeThresholds: open.flatMap(({ name, writeThreshold }) =>
      writeThreshold ? [{ node: name, offset: writeThreshold.offset }] : [],
    ),
    sideBitmaps: open.flatMap(({ name, side }) =>
      side?.bitmap.name === undefined ? [] : [{ node: name, name: side.bitmap.name, path: side.path }],
    ),
    lostBitmaps: open.flatMap(lostBitmapsOf),
    drives: drivesOf(engine),
    devices: devicesOf(engine),
    ...given({ server: serverOf(engine) }),
    exports: exportsOf(engine),
    chardevs: engine.characterDevices
      .list()
      .flatMap(({ id, origin }) =>
        origin ? [{ id, backend: origin.backend, ...given({ maxClients: origin.maxClients }) }] : [],
      ),
    ...given({ migration: engine.moves.settings, arrival: arrivalOf(engine) }),
    jobs: engine.jobs
      .list()
      .filter(({ isOver, isBlockJob }) => !isOver && isBlockJob)
      .map(({ id, type, journal }) => ({ id, type, ...given({ journal }) })),
  };
}

/** One that was reset after it had moved has moved still; one that comes is here before anybody uses it. */
function statusOf({ runState: { status }, moves }: Described): EngineState['status'] {
  const { source, destination } = moves;
  return source.hasLeft && status !== 'finish-migrate' ? 'postmigrate' : (destination.arrivesAs ?? status);
}

function arrivalOf({ moves }: Described): EngineState['arrival'] {
  const { session = '', door } = moves.destination.passed() ?? {};
  if (!door?.address) return undefined;
  return { session, door: addressOf(door.address), ...given({ tls: door.tls }) };
}

function lostBitmapsOf({ name: node, dirtyBitmaps }: Node): EngineState['lostBitmaps'] {
  return dirtyBitmaps.flatMap(({ name, persistent, isInternal, durable }) =>
    name === undefined || isInternal || durable ? [] : [{ node, name, ...(persistent && { persistent }) }],
  );
}

function usersOf({ drives, devices, exports }: Described): BlockBackend[] {
  return [
    ...[...drives.values()].map(({ backend }) => backend),
    ...[...devices.values()].map(({ backend }) => backend),
    ...exports.asked().map(({ backend }) => backend),
  ];
}

function diskOf({ number, root, mediumWasReadOnly, throttleGroup }: BlockBackend): Omit<DiskState, 'id'> {
  const throttling = throttleGroup && {
    group: throttleGroup.id,
    limits: { ...throttleGroup.limits } as Json,
  };
  const medium = root && withoutJobs(root.node).name;
  return { number, mediumWasReadOnly, ...given({ medium, throttling }) } as Omit<DiskState, 'id'>;
}

function drivesOf({ drives }: Described): EngineState['drives'] {
  return [...drives.values()].map(({ properties, backend }) => ({ ...properties, ...diskOf(backend) }));
}

/** One that has lost its medium on its way out is gone. */
function isLeaving({ backend, disk, drive }: GuestDevice): boolean {
  return !backend.root && !disk.mayBeEmpty && !drive;
}

function devicesOf({ machine, devices }: Described): EngineState['devices'] {
  const disks = new Map([...devices.values()].map((device) => [device.path, device]));
  return [...machine.devices].flatMap(({ path, origin, model }) => {
    const disk = disks.get(path);
    if (!origin || (model.disk && !disk) || (disk && isLeaving(disk))) return [];
    const { mode, isOnBoard } = origin;
    // What its medium is by now is told apart.
    const { drive: _, ...options } = origin.options;
    return [{ path, options, mode, isOnBoard, ...given({ disk: disk && deviceDisk(disk) }) }];
  });
}

function deviceDisk(device: GuestDevice): NonNullable<EngineState['devices'][number]['disk']> {
  const { backend, drive, isTrayOpen, ioStatus } = device;
  return { ...diskOf(backend), isTrayOpen, ioStatus, ...given({ drive: drive?.id }) };
}

function serverOf({ exports }: Described): EngineState['server'] {
  const { server } = exports;
  if (!server) return undefined;
  const { maxConnections, handshakeMaxSeconds, tls } = server.properties;
  return {
    address: addressOf(server.address),
    ...given({ maxConnections, handshakeMaxSeconds, credentials: tls?.credentials, authz: tls?.authz }),
  };
}

function exportsOf({ exports, graph }: Described): EngineState['exports'] {
  const driveOf = ({ drive }: ExportProperties): string | undefined =>
    [...graph.drives].find(([, backend]) => backend === drive)?.[0];
  return exports.asked().map(({ backend, properties }) => {
    const { id, writable, writethrough = false } = properties;
    const common = { id, node: withoutJobs(backend.node).name, writable, writethrough };
    if ('address' in properties) {
      const { address, blockSizeBytes, queueCount } = properties;
      return { ...common, type: 'vhost-user-blk', address: addressOf(address), blockSizeBytes, queueCount };
    }
    const { name, description, bitmaps = [], allocationDepth = false } = properties;
    return {
      ...{ ...common, type: 'nbd', name, allocationDepth },
      ...given({ description, drive: driveOf(properties) }),
      bitmaps: bitmaps.map((one) => (typeof one === 'string' ? { name: one } : { ...one })),
    };
  });
}

type StateAddress = NonNullable<EngineState['server']>['address'];

function addressOf(address: SocketAddress): StateAddress {
  switch (address.type) {
    case 'inet':
      return { type: 'inet', host: address.host, port: String(address.port) };
    case 'unix': {
      const isAbstract = address.path.startsWith('\0');
      return { type: 'unix', path: isAbstract ? address.path.slice(1) : address.path, abstract: isAbstract };
    }
    case 'fd':
      return { type: 'fd', str: String(address.fd) };
  }
}
