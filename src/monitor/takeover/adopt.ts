import { RingBuffer } from '../../attach/character-device.js';
import { SocketServerDevice } from '../../attach/socket-device.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { SideBitmap } from '../../block/side-bitmap.js';
import { LatencyHistogram } from '../../block/latency-histogram.js';
import type { JsonValue } from '../../schema/types.js';
import type { PassedSession } from '../../wire/qmp/session.js';
import type { EngineState } from '../../schema/state.js';
import type { Engine } from '../engine.js';
import { onceLetGo } from './let-go.js';
import { restoreSession } from '../sessions/sessions.js';
import { restoreJobs } from '../state/restore.js';
import { takeBytes } from './bytes.js';
import { backendsOf, nbdServersOf, vhostServersOf } from './live.js';
import type {
  FileState,
  LiveState,
  MemoryState,
  NbdClientState,
  SessionState,
  StatisticsState,
} from './messages.js';

type Fds = readonly number[];

function at(fds: Fds, place: number): number {
  return fds[place] ?? -1;
}

/** Files that nodes are opened by, instead of by their paths. */
export function adoptFiles({ host }: Pick<Engine, 'host'>, files: readonly FileState[], fds: Fds): void {
  for (const { node, fd, ...file } of files) host.passing?.files.set(node, { ...file, fd: at(fds, fd) });
}

/** What another process had in memory of nodes that are to be made. */
export function adoptMemories(
  { host }: Pick<Engine, 'host'>,
  memories: readonly MemoryState[],
  fds: Fds,
): void {
  for (const { node, data, parts } of memories)
    host.passing?.memories.set(node, { data, parts: parts.map((part) => takeBytes(host, part, fds)) });
}

/** What must be there before nodes are. */
export function adoptDescriptors({ host, descriptors }: Engine, live: LiveState, fds: Fds): void {
  for (const { setId, members } of live.descriptorSets) {
    const open = members.map(({ fd, place, opaque }) => ({ fd, open: at(fds, place), opaque }));
    host.files.descriptorSets.restore?.(setId, open);
  }
  for (const { name, fd } of live.namedDescriptors) descriptors.add(name, at(fds, fd));
  for (const { names, fd } of live.listeners) host.passing?.addListener({ names, fd: at(fds, fd) });
}

/** Once nodes are there, and before exports show their bitmaps. */
export async function adoptBitmaps({ graph, host }: Engine, live: LiveState, fds: Fds): Promise<void> {
  for (const { node: name, name: bitmapName, path, enabled, file, ...bits } of live.sideBitmaps) {
    const node = graph.node(name);
    const given = { fd: at(fds, file), bits: takeBytes(host, bits, fds), enabled };
    node.side = await SideBitmap.adopt(host, { node, path, name: bitmapName }, given);
    node.dirtyBitmaps.push(node.side.bitmap);
  }
  for (const {
    node: name,
    name: bitmapName,
    granularityBytes,
    enabled,
    persistent,
    ...bits
  } of live.bitmaps) {
    const node = graph.node(name);
    const bitmap = new DirtyBitmap(node.lengthBytes, granularityBytes, bitmapName);
    Object.assign(bitmap, { enabled, persistent });
    bitmap.deserialise(0, takeBytes(host, bits, fds));
    node.dirtyBitmaps.push(bitmap);
  }
  for (const { node: name, names } of live.bitmapOrder) {
    const bitmaps = graph.nodes.get(name)?.dirtyBitmaps;
    bitmaps?.sort((a, b) => names.indexOf(a.name ?? '') - names.indexOf(b.name ?? ''));
  }
}

/** Counters, and how far limits are used up: once all is there that has them. */
export function adoptCounters(engine: Engine, live: LiveState, fds: Fds): void {
  const { graph, characterDevices, jobs } = engine;
  for (const { node, offset } of live.highestWritten) {
    const found = graph.nodes.get(node);
    if (found) found.highestWrittenOffset = offset;
  }
  const backends = backendsOf(engine);
  for (const { node: name, counts } of live.discards) {
    const node = graph.nodes.get(name);
    if (node?.isOpen === true && node.instance.discards) Object.assign(node.instance.discards, counts);
  }
  for (const { node: name, askedRegionBytes, halfLifeMs, regionBytes, countedMs, ...bytes } of live.heats) {
    const rates = [...new Float64Array(takeBytes(engine.host, bytes, fds).buffer)];
    const way = { regionBytes: askedRegionBytes, halfLifeMs };
    engine.heats.restore(graph.node(name), way, { rates, regionBytes, countedMs });
  }
  for (const { kind, name, counters, intervals, idleMs } of live.statistics) {
    const found = backends.find((one) => one.kind === kind && one.name === name);
    if (!found) continue;
    const { statistics, clock } = found.backend;
    restoreStatistics(statistics, counters);
    for (const [i, interval] of statistics.intervals.entries()) {
      const passed = intervals[i];
      if (passed) interval.goOnFrom(passed, clock.nowMs());
    }
    if (idleMs !== undefined) statistics.lastAccessMs = clock.nowMs() - idleMs;
  }
  for (const { group, levels } of live.throttling) graph.objects.groupNamed(group).levels = levels;
  for (const { id, content } of live.ringBuffers) {
    const device = characterDevices.find(id);
    if (device instanceof RingBuffer) device.write(Buffer.from(content, 'base64'));
  }
  jobs.restoreHistory(live.history);
}

/** Once what secures connections is there, and how machines are moved is known. */
export async function adoptMoves({ moves, wholeMove }: Engine, { moves: passed }: LiveState): Promise<void> {
  if (passed) await moves.adopt(passed.machine);
  if (passed?.whole) wholeMove.restore(passed.whole);
}

/** Jobs with journals go on from those; the process that had them has ended. Those that cannot are told of. */
export async function adoptJobs(
  engine: Engine,
  { jobs: asked }: EngineState,
  live: LiveState,
): Promise<void> {
  const { jobs, host } = engine;
  const persisted = asked.filter(({ journal }) => journal !== undefined);
  await restoreJobs(engine, persisted, 'ignore', (request) =>
    onceLetGo(host.clock, () => jobs.resume(request)),
  );
  for (const { id, speed, isPaused } of live.jobs) {
    const job = jobs.find(id);
    if (!job?.kept || job.isOver) continue;
    if (Number(job.limit.bytesPerSecond) !== speed) await job.setSpeed(speed);
    if (isPaused) job.pause();
  }
}

/** The other process has what was passed no more. */
export function ownFiles({ graph }: Pick<Engine, 'graph'>): void {
  for (const node of graph.nodes.values()) if (node.isOpen) node.instance.own?.();
}

/** Front-ends of vhost-user go on: to the new process each says anew what it had said. */
export async function adoptFrontEnds(engine: Engine, { frontEnds }: LiveState, fds: Fds): Promise<void> {
  const servers = vhostServersOf(engine);
  for (const { kind, name, fd, frontEnd } of frontEnds) {
    const socket = await engine.host.net.connect({ type: 'fd', fd: at(fds, fd) }, { receiveFds: true });
    const found = servers.find((one) => one.kind === kind && one.name === name);
    found?.server.adopt(
      socket,
      frontEnd && {
        messages: Buffer.from(frontEnd.messages, 'base64'),
        answered: frontEnd.answered,
        fds: frontEnd.fds.map((place) => at(fds, place)),
      },
    );
  }
}

/** Clients of NBD go on. One that cannot is cut off. */
export async function adoptClients(engine: Engine, { clients }: LiveState, fds: Fds): Promise<void> {
  const servers = new Map(nbdServersOf(engine).map(({ name, server }) => [name, server]));
  for (const { server, fd, client } of clients) {
    const socket = await engine.host.net.connect({ type: 'fd', fd: at(fds, fd) });
    servers.get(server)?.adopt(socket, client && decodeClient(client));
  }
}

function decodeClient({ agreement, said, received }: NbdClientState['client'] & object): {
  agreement: typeof agreement;
  said: Buffer;
  received: Buffer;
} {
  return { agreement, said: Buffer.from(said, 'base64'), received: Buffer.from(received, 'base64') };
}

/** Monitors go on with their clients; the one whose command it was gets `answer`. */
export async function adoptSessions(
  engine: Engine,
  { sessions, madeSessions }: LiveState,
  fds: Fds,
  answer: { [key: string]: JsonValue },
): Promise<void> {
  const { characterDevices, hub, host } = engine;
  const made = new Map(madeSessions.map((passed) => [passed.id, restoreSession(engine, passed)]));
  for (const { chardev, fd, session, entered, owned = [] } of sessions) {
    const socket = await host.net.connect({ type: 'fd', fd: at(fds, fd) }, { receiveFds: true });
    const device = characterDevices.find(chardev);
    if (!(device instanceof SocketServerDevice)) socket.destroy();
    else device.adopt(socket, session && decodeSession(session, fds));
    const caller = hub.list().find((one) => one.socket === socket);
    if (!caller || !session) continue;
    engine.sessions.enter(caller, entered === undefined ? undefined : made.get(entered));
    for (const id of owned) made.get(id)?.ownedBy(caller);
    if (session.asked) caller.answer(session.asked.id, answer);
  }
  for (const one of made.values()) one.endWithoutOwner();
}

function decodeSession(session: SessionState['session'] & object, fds: Fds): PassedSession {
  return {
    ...session,
    messages: session.messages.map((message) => ({
      ...message,
      fds: message.fds.map((place) => at(fds, place)),
    })),
    fds: session.fds.map((place) => at(fds, place)),
    unseen: Buffer.from(session.unseen, 'base64'),
    asked: session.asked && { id: session.asked.id },
  };
}

function restoreStatistics(to: StatisticsState, from: StatisticsState): void {
  for (const operation of ['read', 'write', 'flush', 'unmap'] as const) {
    const { histogram, bytes, operations, failed, invalid = 0, totalMs } = from[operation];
    Object.assign(to[operation], { bytes, operations, failed, invalid, totalMs: Number(totalMs) });
    if (!histogram) continue;
    const restored = new LatencyHistogram(histogram.boundariesNs);
    restored.bins.splice(0, restored.bins.length, ...histogram.bins);
    to[operation].histogram = restored;
  }
}
