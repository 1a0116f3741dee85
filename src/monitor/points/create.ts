import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import { planSnapshot } from '../../view/plan/layers.js';
import type { Plan, PlannedCommand } from '../../view/plan/types.js';
import type { CommandResult } from '../../schema/commands.js';
import type { JsonObject } from '../../schema/types.js';
import { loadDisks, type PointDisk } from './disks.js';
import { type Pending, seenFrom } from './point-file.js';
import { planInfo } from './plan-info.js';
import { whileFrozen } from './guest-agent.js';
import { closingAbove, SentCommands } from './left-open.js';
import type { PointServer } from './server.js';
import { NODE_PREFIX } from './unneeded.js';
import { whileWrittenDown } from './written-down.js';

export interface WantedDisk {
  node: string;
  file?: string;
  'new-node-name'?: string;
}

export interface CreateRequest {
  readonly name: string;
  readonly disks?: readonly WantedDisk[] | undefined;
  readonly keep?: number | undefined;
  readonly quiesce?: { readonly path: string; readonly timeoutMs: number } | undefined;
  readonly isDryRun: boolean;
}

export type Created = CommandResult<'x-point-create'>;
export type NewImage = Created['images'][number];

/**
 * One moment of several disks gets a name: each disk's active image holds it, and a new one above takes what is written.
 * Written down before it is done; whether it was done, the chains tell. Errors: exists, invalid, busy, those of the
 * transaction and the guest agent; nothing has changed then.
 */
export async function createPoint(
  server: PointServer,
  request: CreateRequest,
): Promise<{ answer: Created; commands: PlannedCommand[] }> {
  const { name, isDryRun } = request;
  checkName(name);
  if (request.keep === 0) throw new BlockError('invalid', 'keep is at least 1: the new point is one of them');
  const wanted = request.disks;
  const { view, disks: all } = await loadDisks(
    server,
    wanted?.map(({ node }) => node),
  );
  const disks = wanted ? all : all.filter(({ top, isUsed }) => isUsed && !top.image.isReadOnly);
  if (disks.length === 0) throw new BlockError('invalid', 'there is no disk that is written to');
  if (new Set(disks.map(({ node }) => node)).size < disks.length)
    throw new BlockError('invalid', 'a disk is named twice');
  for (const disk of disks) checkDisk(disk, name);
  const id = server.host.random.bytes(4).toString('hex');
  const images: NewImage[] = [];
  for (const [i, disk] of disks.entries())
    images.push(await newImage(server, disk, { name, id, others: images, wanted: wanted?.[i] }));
  const plans = images.map(({ node, file, 'new-node-name': overlay }) =>
    planSnapshot(view, { kind: 'snapshot', image: node, file, node: overlay }),
  );
  const deletes = request.keep === undefined ? [] : tooOld(disks, request.keep - 1);
  const closings = disks.map(closingAbove);
  const words = [...closings, ...plans].flatMap((one) => one.words);
  const plan = planInfo({ words, bytesAtMost: 0 });
  const transaction = { execute: 'transaction', arguments: { actions: actionsOf(plans) } };
  const closes = closings.flatMap((one) => one.commands);
  const commands = [...closes, transaction];
  if (isDryRun)
    return { answer: { id, plan, images, quiesced: request.quiesce !== undefined, deletes }, commands };
  const created = server.host.clock.wallClock().seconds;
  const pendingOf = ({ settled, top }: PointDisk, { file }: NewImage): Pending => ({
    ...{ what: 'create', name, id, created, disks: disks.length },
    image: seenFrom(settled.file.path, top.path),
    overlay: seenFrom(settled.file.path, file),
    ...(request.quiesce && { agent: posix.resolve(request.quiesce.path) }),
  });
  const quiesce = request.quiesce && {
    ...request.quiesce,
    isLeftOver: disks.some(isFrozenBy(request.quiesce)),
  };
  const sent = new SentCommands();
  const quiesced = await sent.during(() =>
    whileWrittenDown(server, { disks, images, pendingOf }, async () => {
      await sent.send(server, closes);
      return whileFrozen(server.host, quiesce, () => sent.send(server, [transaction]));
    }),
  );
  return { answer: { id, plan, images, quiesced, deletes }, commands };
}

/** Errors: invalid. It becomes part of files' names. */
export function checkName(name: string): void {
  if (isName(name)) return;
  const taken = "a letter or digit, then those, '_', '.', '+' or '-', 64 at most";
  throw new BlockError('invalid', `a point in time is called by ${taken}`);
}

export function isName(name: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$/.test(name);
}

/** Of a disk, whether one who made a point of it froze the guest by that agent, and is not known to have thawed it. */
function isFrozenBy({ path }: { readonly path: string }): (disk: PointDisk) => boolean {
  return ({ settled }) => settled.file.content.frozen === posix.resolve(path);
}

function checkDisk({ node, settled, damaged, isUsed }: PointDisk, name: string): void {
  if (!isUsed) {
    const text = `nobody uses disk '${node}', so a new active image would not stay open`;
    throw new BlockError('invalid', `${text}: attach or export it first`);
  }
  checkKnown({ node, settled, damaged });
  if (settled.points.some(({ record }) => record.name === name))
    throw new BlockError('exists', `disk '${settled.file.content.disk}' has a point '${name}' already`);
}

/** Errors: those of checkActive; corrupt, where what cannot be read may be its points file. */
export function checkKnown({ damaged, ...disk }: Pick<PointDisk, 'node' | 'settled' | 'damaged'>): void {
  checkActive(disk);
  const [first] = damaged;
  if (first !== undefined && disk.settled.file.sequence === 0) throw new BlockError('corrupt', first);
}

/** Errors: invalid, where a point, or what the disk has left, was opened in its place. */
export function checkActive({ node, settled }: Pick<PointDisk, 'node' | 'settled'>): void {
  if (settled.activeElsewhere === undefined) return;
  const text = `'${node}' is not disk '${settled.file.content.disk}' as it is now, whose active image is`;
  throw new BlockError('invalid', `${text} '${settled.activeElsewhere}': open that`);
}

/** What a new active image is to be called: beside the old one, by the point's name. `others` come with it. */
export async function newImage(
  server: PointServer,
  disk: PointDisk,
  wish: { name: string; id: string; others: readonly NewImage[]; wanted: WantedDisk | undefined },
): Promise<NewImage> {
  const { name, id, others, wanted } = wish;
  const { content } = disk.settled.file;
  const taken = others.map(({ file }) => file);
  const file =
    wanted?.file === undefined ? await freeFile(server, disk, name, taken) : posix.resolve(wanted.file);
  if (await server.host.files.stat(file)) throw new BlockError('exists', `'${file}' is there already`);
  return {
    ...{ disk: content.disk, node: disk.node, file },
    'new-node-name': wanted?.['new-node-name'] ?? `${NODE_PREFIX}${id}-${others.length}`,
  };
}

async function freeFile(
  { host }: PointServer,
  { settled, top }: PointDisk,
  name: string,
  taken: readonly string[],
): Promise<string> {
  const folder = posix.dirname(top.path);
  for (let number = 1; ; number++) {
    const suffix = number === 1 ? '' : `-${number}`;
    const file = posix.join(folder, `${settled.file.content.disk}.after-${name}${suffix}.qcow2`);
    if (!taken.includes(file) && !(await host.files.stat(file))) return file;
  }
}

function actionsOf(plans: readonly Plan[]): JsonObject[] {
  return plans.flatMap(({ commands }) =>
    commands.map(({ execute, arguments: data }): JsonObject => ({ type: execute, data })),
  );
}

/** Names of points beyond the newest `count` of each disk, oldest first. */
function tooOld(disks: readonly PointDisk[], count: number): string[] {
  const names = disks.flatMap(({ settled: { points } }) => {
    const there = points.filter(({ state }) => state === 'usable');
    return there.slice(0, Math.max(0, there.length - count)).map(({ record }) => record.name);
  });
  return [...new Set(names)];
}
