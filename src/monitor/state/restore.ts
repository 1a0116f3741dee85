import { BlockError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { BlockBackend } from '../../block/backend.js';
import type { NodeState } from '../../block/node-state.js';
import { checkedLimits } from '../../block/objects/throttle-limits.js';
import { restoreNodes } from '../../block/restore-nodes.js';
import { SideBitmap } from '../../block/side-bitmap.js';
import type { CharacterDevice } from '../../attach/character-device.js';
import { TerminalDevice } from '../../attach/socket-device.js';
import { Drive, DRIVE_INTERFACES, type DriveInterface, USUAL_ACCOUNTING } from '../../attach/drive.js';
import type { MoveChoices } from '../../attach/migration/moves.js';
import type { RunStatus } from '../../attach/run-state.js';
import type { SocketAddress } from '../../host/host.js';
import type { ObjectOptions } from '../../schema/objects.js';
import type { EngineState } from '../../schema/state.js';
import type { JsonObject } from '../../schema/types.js';
import { defaultGranularity, newDurability } from '../bitmaps.js';
import { setWriteThreshold } from '../blockdev.js';
import { openCharacterDevice } from '../chardevs.js';
import { addDevice } from '../devices.js';
import type { JobManager } from '../../jobs/manager.js';
import type { Engine } from '../engine.js';
import { type FlatAddress, socketAddress } from '../exports.js';

/** What is asked for again: secrets, by their ids. */
export type Secrets = ReadonlyMap<string, ObjectOptions>;

/** Machines whose disks another has, or may have. */
const ELSEWHERE: ReadonlySet<RunStatus> = new Set(['inmigrate', 'finish-migrate', 'postmigrate']);
/** A snapshot with the machine's state was under way. */
const HALFWAY: ReadonlySet<RunStatus> = new Set(['save-vm', 'restore-vm']);

/**
 * Makes an engine, on which nothing is yet and whose guest waits, what the state says: all of it, or an error is thrown,
 * after which the engine is of no use. Guests and clients come in last. What does not come back with a state is told.
 * `bringBitmaps`: of a process that is taken over from nothing is lost; it brings all of them, and jobs go on later.
 */
export async function restoreEngine(
  engine: Engine,
  state: EngineState,
  secrets: Secrets,
  bringBitmaps?: () => Promise<void>,
): Promise<void> {
  const { status } = state;
  if (ELSEWHERE.has(status)) {
    const text = `The machine of this state is '${status}': its disks are another's, and who has them must say so`;
    throw new BlockError('invalid', text);
  }
  await restoreObjects(engine, state, secrets);
  await restoreNodes(engine.opener, state.nodes as unknown as NodeState[]);
  for (const { node, offset } of state.writeThresholds) setWriteThreshold(engine, node, offset);
  await (bringBitmaps?.() ?? restoreSideBitmaps(engine, state));
  await restoreDisks(engine, state);
  for (const { id, backend, maxClients } of state.chardevs) {
    const open = (): Promise<CharacterDevice> => openCharacterDevice(engine, id, backend, maxClients);
    const device = await engine.characterDevices.add(id, open);
    if (device instanceof TerminalDevice)
      engine.print(`char device redirected to ${device.path} (label ${id})`);
  }
  if (state.migration) engine.moves.restore(state.migration as MoveChoices);
  if (bringBitmaps) await restoreExports(engine, state);
  else {
    await restoreArrival(engine, state);
    await restoreExportsAndJobs(engine, state);
  }
  if (HALFWAY.has(status)) engine.warn('a snapshot of the machine was under way: the guest waits for cont');
  engine.runState.restore(HALFWAY.has(status) ? 'paused' : status);
}

/** Its source asks who has the machine. */
async function restoreArrival({ moves, warn }: Engine, { arrival }: EngineState): Promise<void> {
  if (!arrival) return;
  const { session, door, tls } = arrival;
  const passed = { isOnce: false, address: socketAddress(door), ...given({ tls }) };
  await moves
    .adopt({ isIncoming: true, arrival: { session, door: passed } })
    .catch((error: unknown) =>
      warn(`warning: the source of this machine cannot be answered: ${toBlockError(error).message}`),
    );
}

async function restoreObjects({ graph, warn }: Engine, state: EngineState, secrets: Secrets): Promise<void> {
  const { objects } = graph;
  const missing: string[] = [];
  for (const { id, type, options } of state.objects) {
    const object = { ...(options as JsonObject), 'qom-type': type, id } as unknown as ObjectOptions;
    const again = secrets.get(id);
    if (again) await objects.add(again);
    else if (type !== 'secret' || 'file' in object) await objects.add(object);
    else missing.push(id);
  }
  for (const id of secrets.keys())
    if (!objects.find(id))
      warn(`warning: no secret '${id}' is in the state, and the one that is given is not used`);
  if (missing.length === 0) return;
  const list = missing.map((id) => `'${id}'`).join(', ');
  throw new BlockError(
    'not-found',
    `The state has no secret's value: ${list} must be given again by -object secret`,
  );
}

async function restoreSideBitmaps(engine: Engine, { sideBitmaps }: EngineState): Promise<void> {
  const { graph, host, warn } = engine;
  for (const { node: name, name: bitmap, path } of sideBitmaps) {
    const node = graph.node(name);
    const { side, lost } = await SideBitmap.attach(
      ...([host, { node, path, name: bitmap }] as const),
      ...([
        {
          granularityBytes: defaultGranularity(node),
          begins: newDurability(engine),
          strict: false,
          id: undefined,
        },
      ] as const),
    );
    node.side = side;
    node.dirtyBitmaps.push(side.bitmap);
    if (lost !== undefined) warn(`warning: bitmap '${bitmap}' of node '${name}' begins anew: ${lost}`);
  }
}

/** Drives and devices, so that both are in the order in which they came. */
async function restoreDisks(engine: Engine, { drives, devices }: EngineState): Promise<void> {
  const waiting = [...drives].sort((a, b) => a.number - b.number);
  const addDrives = async (upTo: number): Promise<void> => {
    for (let next = waiting[0]; next && next.number <= upTo; next = waiting[0]) {
      waiting.shift();
      await restoreDrive(engine, next);
    }
  };
  for (const device of devices) {
    if (device.disk) await addDrives(device.disk.number);
    await restoreDevice(engine, device);
  }
  await addDrives(Infinity);
}

async function restoreDrive({ graph, drives }: Engine, state: EngineState['drives'][number]): Promise<void> {
  const { id, bus, unit, isCdrom, writethrough, readErrors, writeErrors, medium } = state;
  const { accounting = USUAL_ACCOUNTING } = state;
  const kind = state.interface as DriveInterface;
  if (!DRIVE_INTERFACES.includes(kind))
    throw new BlockError('corrupt', `Drive '${id}' has no interface '${kind}'`);
  const place = { id, interface: kind, bus, unit, isCdrom };
  const properties = { ...place, writethrough, readErrors, writeErrors, accounting };
  const node = medium === undefined ? undefined : graph.node(medium);
  const drive = await Drive.create(graph, properties, node);
  drives.set(id, drive);
  restoreDisk({ graph }, drive.backend, state);
}

async function restoreDevice(engine: Engine, state: EngineState['devices'][number]): Promise<void> {
  const { path, options, mode, isOnBoard, disk } = state;
  engine.machine.nextPath(path);
  const medium = disk?.drive ?? disk?.medium;
  const asked = { ...(options as JsonObject), ...given({ drive: medium }) } as JsonObject;
  await addDevice(engine, asked, { mode, hot: false, isOnBoard });
  const device = [...engine.devices.values()].find((candidate) => candidate.path === path);
  if (!disk || !device) return;
  device.isTrayOpen = disk.isTrayOpen;
  device.ioStatus = disk.ioStatus;
  restoreDisk(engine, device.backend, disk);
}

function restoreDisk(
  { graph }: Pick<Engine, 'graph'>,
  backend: BlockBackend,
  { mediumWasReadOnly, throttling }: Pick<EngineState['drives'][number], 'mediumWasReadOnly' | 'throttling'>,
): void {
  backend.mediumWasReadOnly = mediumWasReadOnly;
  if (!throttling) return;
  const group = graph.objects.groupNamed(throttling.group);
  group.limits = checkedLimits(throttling.limits as { [name: string]: number });
  backend.throttleGroup = group;
}

/** What is exported is where it was when jobs come below it; what clients ask meanwhile waits. */
async function restoreExportsAndJobs(engine: Engine, state: EngineState): Promise<void> {
  const { graph } = engine;
  await graph.drained(graph.nodes.values(), async () => {
    await restoreExports(engine, state);
    await restoreJobs(engine, state.jobs, 'refuse');
  });
  tellLost(engine, state);
}

/** Before anybody can write. One that cannot go on is told of: the disks are of more use than it. */
export async function restoreJobs(
  engine: Pick<Engine, 'jobs' | 'warn'>,
  jobs: EngineState['jobs'],
  ifChanged: 'refuse' | 'ignore',
  resume: JobManager['resume'] = (request) => engine.jobs.resume(request),
): Promise<void> {
  const { warn } = engine;
  for (const { id, type, journal } of [...jobs].reverse()) {
    if (journal === undefined) {
      warn(`warning: the ${type} job '${id}' was not persisted: it is gone`);
      continue;
    }
    try {
      await resume({ journal, jobId: id, ifChanged });
    } catch (error) {
      const { message, hint } = toBlockError(error);
      const advice = hint === undefined ? '' : ` (${hint})`;
      warn(`warning: the ${type} job '${id}' does not go on: ${message}${advice}; x-job-resume tries again`);
    }
  }
}

function tellLost({ graph, warn }: Engine, { lostBitmaps }: EngineState): void {
  for (const { node, name, persistent = false } of lostBitmaps) {
    if (graph.node(node).findBitmap(name)) continue;
    const why = persistent ? 'is kept only at a clean end' : 'was not persistent';
    warn(`warning: bitmap '${name}' of node '${node}' ${why}: it is lost`);
  }
  for (const node of graph.listed())
    for (const { name, inconsistent } of node.dirtyBitmaps)
      if (inconsistent)
        warn(
          `warning: bitmap '${name ?? ''}' of node '${node.name}' is kept only at a clean end: it is inconsistent`,
        );
}

async function restoreExports(engine: Engine, { server, exports }: EngineState): Promise<void> {
  if (server) {
    const { address, maxConnections, handshakeMaxSeconds, credentials, authz } = server;
    const tls = credentials === undefined ? undefined : { credentials, ...given({ authz }) };
    await engine.exports.startServer(
      addressOf(engine, address, 'the NBD server'),
      given({ maxConnections, handshakeMaxSeconds, tls }),
    );
  }
  for (const one of exports) await restoreExport(engine, one);
}

async function restoreExport(engine: Engine, state: EngineState['exports'][number]): Promise<void> {
  const { graph, exports, drives, warn } = engine;
  const { id, writable, writethrough } = state;
  const node = graph.node(state.node);
  const common = { id, node, writable, writethrough };
  if (state.type === 'vhost-user-blk') {
    const { blockSizeBytes, queueCount } = state;
    const address = addressOf(engine, state.address, `export '${id}'`);
    return exports.addVhostUser({ ...common, address, blockSizeBytes, queueCount });
  }
  const { name, description, drive, allocationDepth } = state;
  const bitmaps = state.bitmaps.filter(({ node: of = node.name, name: wanted }) => {
    const isThere = [...graph.node(of).chain()].some((at) => at.findBitmap(wanted));
    if (!isThere) warn(`warning: export '${id}' shows no bitmap '${wanted}' any more`);
    return isThere;
  });
  await exports.add({
    ...{ ...common, name, allocationDepth },
    ...given({ description, drive: drive === undefined ? undefined : drives.get(drive)?.backend }),
    bitmaps: bitmaps.map(({ node: of, name: wanted }) =>
      of === undefined ? wanted : { node: of, name: wanted },
    ),
  });
}

function addressOf({ host }: Engine, address: FlatAddress, who: string): SocketAddress {
  if (address.type !== 'fd') return socketAddress(address);
  const passed = { type: 'fd', fd: Number(address.str) } as const;
  if (host.passing?.hasListener(JSON.stringify(passed)) === true) return passed;
  const text = `The socket of ${who} was passed as a descriptor, which is gone with the daemon that had it`;
  throw new BlockError('not-found', text);
}
