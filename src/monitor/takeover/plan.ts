import { NullDevice, RingBuffer } from '../../attach/character-device.js';
import { FileDevice } from '../../attach/file-device.js';
import { SocketServerDevice } from '../../attach/socket-device.js';
import { BlockError } from '../../base/error.js';
import type { Node } from '../../block/node.js';
import type { Job } from '../../jobs/job.js';
import type { RunStatus } from '../../attach/run-state.js';
import type { Infer } from '../../schema/types.js';
import type { TakeoverReport } from '../../schema/takeover.js';
import { type Given, isTransient, nbdServersOf, vhostServersOf } from './live.js';

export type Report = Infer<typeof TakeoverReport>;

/** The machine's disks are another's, or may be, or its state is half saved. */
const ELSEWHERE: ReadonlySet<RunStatus> = new Set([
  ...(['inmigrate', 'finish-migrate', 'postmigrate', 'save-vm', 'restore-vm'] as const),
]);

/** Errors: busy, for what a report refuses. */
export function assertWilling({ refuses }: Report): void {
  const [first] = refuses;
  if (first === undefined) return;
  const more = refuses.length > 1 ? `, and ${refuses.length - 1} more` : '';
  throw new BlockError('busy', `No takeover: ${first}${more}`);
}

/** What a takeover does with what there is now. */
export function planTakeover(engine: Given): Report {
  return {
    'goes-over': goesOver(engine),
    'opened-anew': openNodes(engine).filter(isOpenedAnew).map(wordsOf),
    cut: cut(engine),
    refuses: refusals(engine),
  };
}

function openNodes({ graph }: Given): Node[] {
  return [...graph.nodes.values()].filter(({ isOpen }) => isOpen);
}

function isOpenedAnew({ driver, instance }: Node): boolean {
  return driver.kind === 'protocol' && driver.filename !== undefined && !instance.passed;
}

function wordsOf(node: Node): string {
  return `node '${node.name}'${node.filename === '' ? '' : ` (${node.filename})`}`;
}

function goesOver(engine: Given): string[] {
  const { graph, host, exports, devices, hub, jobs, sessions } = engine;
  const nodes = openNodes(engine);
  const bitmaps = nodes.flatMap((node) =>
    node.dirtyBitmaps
      .filter((bitmap) => isTransient(node, bitmap) || bitmap === node.side?.bitmap)
      .map(({ name }) => ({ node, name })),
  );
  return [
    ...nodes.filter(({ instance }) => instance.passed).map(wordsOf),
    ...bitmaps.map(({ node, name }) => `bitmap '${name ?? ''}' of node '${node.name}'`),
    ...jobs
      .list()
      .filter((job) => jobRefusal(job).length === 0)
      .map(({ id, journal }) => `job '${id}'${journal === undefined ? '' : ` (${journal})`}`),
    ...exports.asked().map(({ properties }) => `export '${properties.id}'`),
    ...sessions.list().map(({ id }) => `session '${id}'`),
    ...(engine.guestProgram ? ["the machine's guest, in its program"] : []),
    ...[...devices.values()].map(({ qdevPath }) => `device '${qdevPath}'`),
    ...graph.objects.throttleGroups().map(({ id }) => `throttle group '${id}'`),
    ...(host.files.descriptorSets.list() ?? []).map(({ setId }) => `descriptor set ${setId}`),
    ...nbdServersOf(engine).flatMap(({ name, server }) =>
      counted(server.countPassable().passable, `NBD client${name === '' ? '' : ` of device '${name}'`}`),
    ),
    ...vhostServersOf(engine).flatMap(({ kind, name, server }) =>
      server.isConnected ? [`the vhost-user client of ${kind} '${name}'`] : [],
    ),
    ...counted(hub.list().filter(({ isPassable }) => isPassable).length, 'QMP client'),
  ];
}

function counted(count: number, what: string): string[] {
  if (count === 0) return [];
  const [noun = '', ...rest] = what.split(/(?<=client)/);
  return [`${count} ${noun}${count === 1 ? '' : 's'}${rest.join('')}`];
}

function cut(engine: Given): string[] {
  const { hub } = engine;
  return [
    ...nbdServersOf(engine).flatMap(({ server }) =>
      counted(server.countPassable().cut, 'NBD client with TLS'),
    ),
    ...counted(hub.list().filter(({ isPassable }) => !isPassable).length, 'QMP client with TLS'),
    ...counted(humanMonitors(engine), 'client of a human monitor'),
  ];
}

function humanMonitors({ characterDevices, hub }: Given): number {
  const speakers = new Set(hub.list().map(({ socket }) => socket));
  const served = characterDevices
    .list()
    .flatMap((device) => (device instanceof SocketServerDevice ? device.connections.served : []));
  return served.filter((socket) => !speakers.has(socket)).length;
}

function refusals(engine: Given): string[] {
  const { jobs, runState, sessions } = engine;
  return [
    ...engine.deletingPoints().map((name) => `point '${name}' is being deleted`),
    ...jobs.list().flatMap((job) => jobRefusal(job)),
    ...(ELSEWHERE.has(runState.status) ? [`the machine is '${runState.status}'`] : moveRefusals(engine)),
    ...sessions.list().flatMap(({ id, ends }) => (ends ? [`session '${id}' is being undone`] : [])),
    ...openNodes(engine).flatMap(nodeRefusal),
    ...exportRefusals(engine),
    ...chardevRefusals(engine),
  ];
}

function moveRefusals({ moves, wholeMove }: Given): string[] {
  // Also of one that was reset since.
  if (moves.source.hasLeft) return ['the machine has moved: the destination has it'];
  if (moves.source.isUnderWay || wholeMove.isUnderWay) return ['a migration is under way'];
  return [];
}

function jobRefusal(job: Job): string[] {
  const { id, type, isOver, isEnding, journal } = job;
  if (isOver) return [];
  const why = journal === undefined ? job.passRefusal : isEnding ? 'is ending' : undefined;
  return why === undefined ? [] : [`job '${id}' of type ${type} ${why}`];
}

function nodeRefusal(node: Node): string[] {
  const { name, driver, instance, isClosing } = node;
  if (isClosing) return [`node '${name}' is being closed`];
  if (driver.kind === 'format' && node.isWritable && driver.opensWithoutWriting !== true)
    return [`node '${name}' of format ${driver.name} is open for writing`];
  return instance.hasLostWrites === true ? [`node '${name}' has lost writes`] : [];
}

function exportRefusals({ exports }: Given): string[] {
  return exports
    .list()
    .flatMap(({ id, shuttingDown }) => (shuttingDown ? [`export '${id}' is shutting down`] : []));
}

function chardevRefusals({ characterDevices }: Given): string[] {
  const passable = [SocketServerDevice, RingBuffer, NullDevice, FileDevice];
  return characterDevices
    .list()
    .filter((device) => !passable.some((kind) => device instanceof kind))
    .map(({ id, filename }) => `character device '${id}' (${filename}) cannot be passed on`);
}
