import { RingBuffer } from '../../attach/character-device.js';
import { SocketServerDevice } from '../../attach/socket-device.js';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { BlockBackend } from '../../block/backend.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { withoutJobs } from '../../block/node-state.js';
import type { Node } from '../../block/node.js';
import type { Host } from '../../host/host.js';
import type { NbdServer } from '../../wire/nbd/server.js';
import type { VhostServer } from '../../wire/vhost-user/server.js';
import type { Caller } from '../../wire/qmp/registry.js';
import type { Parts } from '../parts.js';
import type { Described } from '../state/describe.js';
import type { Bundle } from './bundle.js';
import type {
  BitmapState,
  BytesState,
  FileState,
  FrontEndState,
  HeatState,
  LiveState,
  MemoryState,
  NbdClientState,
  SessionState,
  SideBitmapState,
} from './messages.js';

/** What a takeover gives to another process. */
export type Given = Described &
  Parts<
    | 'host'
    | 'hub'
    | 'descriptors'
    | 'lost'
    | 'moves'
    | 'wholeMove'
    | 'sessions'
    | 'guestProgram'
    | 'daemon'
    | 'quitting'
    | 'handingOver'
    | 'heats'
    | 'deletingPoints'
  >;

/** The open files of nodes, by their names. */
export function describeFiles(nodes: Iterable<Node>, bundle: Bundle): FileState[] {
  return [...nodes].flatMap((node) => {
    const passed = node.isOpen ? node.instance.passed : undefined;
    if (!passed || passed.fd === undefined) return [];
    return [{ ...passed, node: node.name, fd: bundle.add(passed.fd) }];
  });
}

/** What drivers have in memory. */
export function describeMemories(
  { host }: Pick<Given, 'host'>,
  nodes: Iterable<Node>,
  bundle: Bundle,
): MemoryState[] {
  return [...nodes].flatMap((node) => {
    const memory = node.isOpen ? node.instance.memory : undefined;
    if (!memory) return [];
    const parts = memory.parts.map((bytes) => bytesState(host, node.name, bytes, bundle));
    return [{ node: node.name, data: memory.data, parts }];
  });
}

/** Bytes for another process. */
export function bytesState({ sharing }: Host, what: string, bytes: Uint8Array, bundle: Bundle): BytesState {
  if (!sharing) throw new BlockError('unsupported', 'This host shares no memory');
  const lengthBytes = bytes.length;
  const fd = sharing.create(`livedisk ${what}`.slice(0, 60), Math.max(1, lengthBytes));
  bundle.own(fd);
  if (lengthBytes > 0) {
    const memory = sharing.map(fd, 0, lengthBytes);
    memory.view(0, lengthBytes).set(bytes);
    memory.unmap();
  }
  return { fd: bundle.add(fd), lengthBytes };
}

/** Nobody changes anything meanwhile. `asker`: whose command it is. */
export function describeLive(
  engine: Given,
  bundle: Bundle,
  { asker, passedJobs }: { asker: Caller | undefined } & Pick<LiveState, 'passedJobs'>,
): LiveState {
  const { graph, host, descriptors, characterDevices, jobs } = engine;
  const nodes = [...graph.nodes.values()];
  return {
    secrets: graph.objects
      .list()
      .filter(({ type }) => type.name === 'secret')
      .map(({ id, type, given: options }) => ({
        id,
        options: { ...options, 'qom-type': type.name, id },
      })),
    listeners: (host.passing?.listeners() ?? []).map(({ names, fd }) => ({
      names: [...names],
      fd: bundle.add(fd),
    })),
    bitmaps: nodes.flatMap((node) =>
      node.dirtyBitmaps.flatMap((bitmap) => transient(host, node, bitmap, bundle)),
    ),
    sideBitmaps: nodes.flatMap((node) => besides(host, node, bundle)),
    bitmapOrder: nodes.map((node) => ({
      node: node.name,
      names: node.dirtyBitmaps.flatMap(({ name }) => name ?? []),
    })),
    highestWritten: nodes.map((node) => ({ node: node.name, offset: node.highestWrittenOffset })),
    statistics: backendsOf(engine).map(({ backend, ...who }) => ({ ...who, ...countersOf(backend) })),
    discards: nodes.flatMap((node) => {
      const discards = node.isOpen ? node.instance.discards : undefined;
      return discards ? [{ node: node.name, counts: { ...discards } }] : [];
    }),
    heats: nodes.flatMap((node) => heatsOf(engine, node, bundle)),
    throttling: graph.objects.throttleGroups().map(({ id, levels }) => ({ group: id, levels })),
    descriptorSets: (host.files.descriptorSets.passed?.() ?? []).map(({ setId, members }) => ({
      setId,
      members: members.map(({ fd, open, opaque }) => ({ fd, place: bundle.add(open), ...given({ opaque }) })),
    })),
    namedDescriptors: descriptors.list().map(({ name, fd }) => ({ name, fd: bundle.add(fd) })),
    ringBuffers: characterDevices
      .list()
      .flatMap((device) =>
        device instanceof RingBuffer ? [{ id: device.id, content: device.content.toString('base64') }] : [],
      ),
    clients: nbdServersOf(engine).flatMap(({ name, server }) => clientsOf(name, server, bundle)),
    frontEnds: vhostServersOf(engine).flatMap((one) => frontEndsOf(one, bundle)),
    sessions: sessionsOf(engine, bundle, asker),
    madeSessions: engine.sessions.list().map((session) => session.passed()),
    history: [...jobs.history()],
    jobs: jobs.list().map(({ id, limit, pace }) => ({
      ...{ id, isPaused: pace.isUserPaused },
      speed: Math.min(Number(limit.bytesPerSecond), Number.MAX_SAFE_INTEGER),
    })),
    passedJobs,
    lentNodes: nodes.flatMap(({ name, isLentToJob }) => (isLentToJob ? [name] : [])),
    nodeOrder: nodes.map(({ name }) => name),
    ...given({ guest: guestOf(engine, bundle), moves: movesOf(engine) }),
  };
}

function movesOf({ kind, moves, wholeMove }: Given): LiveState['moves'] {
  if (kind !== 'machine') return undefined;
  return { machine: moves.passed(), ...given({ whole: wholeMove.info() }) };
}

function guestOf({ guestProgram }: Given, bundle: Bundle): LiveState['guest'] {
  if (!guestProgram) return undefined;
  const { data, fds } = guestProgram.passed();
  return { data, fds: bundle.addAll(fds) };
}

/** Those that are in no image; one that is not ours yet has none of those that it is to keep. */
export function isTransient({ activity }: Node, { name, persistent, isInternal }: DirtyBitmap): boolean {
  return name !== undefined && !isInternal && (!persistent || activity === 'inactive');
}

/** With what was recorded beside it while a job works on it. */
function bitsOf(bitmap: DirtyBitmap): DirtyBitmap {
  const { successor, sizeBytes, granularityBytes } = bitmap;
  if (!successor) return bitmap;
  const all = new DirtyBitmap(sizeBytes, granularityBytes);
  all.merge(bitmap);
  all.merge(successor);
  return all;
}

function transient(host: Host, node: Node, bitmap: DirtyBitmap, bundle: Bundle): BitmapState[] {
  const { name, granularityBytes, enabled, persistent } = bitmap;
  if (!isTransient(node, bitmap) || name === undefined) return [];
  const bits = bytesState(host, `bitmap ${name}`, bitsOf(bitmap).bytes(), bundle);
  return [{ node: withoutJobs(node).name, name, granularityBytes, enabled, persistent, ...bits }];
}

function besides(host: Host, node: Node, bundle: Bundle): SideBitmapState[] {
  const { side } = node;
  const fd = side?.fd;
  if (!side || fd === undefined) return [];
  const { bitmap, path } = side;
  const { name = '', enabled } = bitmap;
  const bits = bytesState(host, `bitmap ${name}`, bitsOf(bitmap).bytes(), bundle);
  return [{ node: withoutJobs(node).name, name, path, enabled, file: bundle.add(fd), ...bits }];
}

function countersOf({
  statistics,
  clock,
}: BlockBackend): Pick<LiveState['statistics'][number], 'counters' | 'intervals' | 'idleMs'> {
  const { read, write, flush, unmap, lastAccessMs } = statistics;
  const nowMs = clock.nowMs();
  const idleMs = lastAccessMs === undefined ? undefined : nowMs - lastAccessMs;
  const intervals = statistics.intervals.map((interval) => interval.passed(nowMs));
  return { counters: { read, write, flush, unmap }, intervals, ...given({ idleMs }) };
}

function heatsOf({ heats, host }: Given, node: Node, bundle: Bundle): HeatState[] {
  return heats.list(node).map((heat) => {
    const { rates, regionBytes, countedMs } = heat.passed();
    const bytes = new Uint8Array(Float64Array.from(rates).buffer);
    return {
      ...{ node: node.name, askedRegionBytes: heat.askedRegionBytes, halfLifeMs: heat.halfLifeMs },
      ...{ regionBytes, countedMs },
      ...bytesState(host, `heat ${node.name}`, bytes, bundle),
    };
  });
}

export function backendsOf({
  drives,
  devices,
  exports,
}: Pick<Given, 'drives' | 'devices' | 'exports'>): Array<{
  kind: 'drive' | 'device' | 'export';
  name: string;
  backend: BlockBackend;
}> {
  return [
    ...[...drives].map(([name, { backend }]) => ({ kind: 'drive' as const, name, backend })),
    ...[...devices.values()].map(({ path, backend }) => ({ kind: 'device' as const, name: path, backend })),
    ...exports
      .asked()
      .map(({ backend, properties }) => ({ kind: 'export' as const, name: properties.id, backend })),
  ];
}

/** By the paths of devices; '': the one for exports. */
export function nbdServersOf({
  exports,
  devices,
}: Pick<Given, 'exports' | 'devices'>): Array<{ name: string; server: NbdServer }> {
  return [
    ...(exports.nbd ? [{ name: '', server: exports.nbd }] : []),
    ...[...devices.values()].flatMap(({ path, nbd }) => (nbd ? [{ name: path, server: nbd }] : [])),
  ];
}

/** By the ids of exports and the paths of devices. */
export function vhostServersOf({ exports, devices }: Pick<Given, 'exports' | 'devices'>): Array<{
  kind: FrontEndState['kind'];
  name: string;
  server: VhostServer;
}> {
  return [
    ...exports.vhost.map(({ id, server }) => ({ kind: 'export' as const, name: id, server })),
    ...[...devices.values()].flatMap(({ path, vhost }) =>
      vhost ? [{ kind: 'device' as const, name: path, server: vhost }] : [],
    ),
  ];
}

function frontEndsOf(
  { kind, name, server }: ReturnType<typeof vhostServersOf>[number],
  bundle: Bundle,
): FrontEndState[] {
  return server.passed().map(({ frontEnd, fd }) => ({
    ...{ kind, name, fd: bundle.add(fd) },
    ...(frontEnd && {
      frontEnd: {
        messages: frontEnd.messages.toString('base64'),
        answered: frontEnd.answered,
        fds: bundle.addAll(frontEnd.fds),
      },
    }),
  }));
}

function clientsOf(name: string, server: NbdServer, bundle: Bundle): NbdClientState[] {
  return server.passed().map(({ client, fd }) => ({
    server: name,
    fd: bundle.add(fd),
    ...(client && {
      client: {
        ...given({ agreement: client.agreement }),
        said: client.said.toString('base64'),
        received: client.received.toString('base64'),
      },
    }),
  }));
}

/** Clients of monitors that speak QMP, and those that wait for a place. */
function sessionsOf(
  { characterDevices, hub, sessions: made }: Given,
  bundle: Bundle,
  asker: Caller | undefined,
): SessionState[] {
  const bySocket = new Map(hub.list().map((session) => [session.socket, session]));
  return characterDevices.list().flatMap((device) => {
    if (!(device instanceof SocketServerDevice)) return [];
    const { served, waiting } = device.connections;
    const passed = served.flatMap((socket) => {
      const caller = bySocket.get(socket);
      const its = caller?.passed(asker);
      return caller && its ? [{ caller, ...its }] : [];
    });
    return [
      ...passed.map(({ caller, session: { unseen, asked, messages, fds, ...session }, fd }) => ({
        chardev: device.id,
        fd: bundle.add(fd),
        ...given({ entered: made.of(caller)?.id }),
        owned: made.list().flatMap(({ id, owner }) => (owner === caller ? [id] : [])),
        session: {
          ...session,
          messages: messages.map((message) => ({ ...message, fds: bundle.addAll(message.fds) })),
          fds: bundle.addAll(fds),
          unseen: unseen.toString('base64'),
          ...(asked && { asked: given({ id: asked.id }) }),
        },
      })),
      ...waiting.flatMap((socket) => {
        const fd = socket.descriptor?.();
        return fd === undefined ? [] : [{ chardev: device.id, fd: bundle.add(fd) }];
      }),
    ];
  });
}
