import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import { planSnapshot } from '../../view/plan/layers.js';
import type { Plan } from '../../view/plan/types.js';
import type { CommandResult } from '../../schema/commands.js';
import type { JsonObject } from '../../schema/types.js';
import { keep, loadDisks, openFiles, type PointDisk } from './disks.js';
import { type Pending, type PointFileContent, seenFrom } from './point-file.js';
import { planInfo } from './plan-info.js';
import { whileFrozen } from './guest-agent.js';
import type { PointServer } from './server.js';

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
export async function createPoint(server: PointServer, request: CreateRequest): Promise<Created> {
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
    images.push(await newImage(server, disk, { name, id, index: i, wanted: wanted?.[i] }));
  const plans = images.map(({ node, file, 'new-node-name': overlay }) =>
    planSnapshot(view, { kind: 'snapshot', image: node, file, node: overlay }),
  );
  const deletes = request.keep === undefined ? [] : tooOld(disks, request.keep - 1);
  const plan = planInfo({ words: plans.flatMap(({ words }) => words), bytesAtMost: 0 });
  if (isDryRun) return { id, plan, images, quiesced: request.quiesce !== undefined, deletes };
  const created = server.host.clock.wallClock().seconds;
  const pending = (disk: PointDisk, image: NewImage): Pending => ({
    ...{ what: 'create', name, id, created, disks: disks.length },
    image: seenFrom(disk.settled.file.path, disk.top.path),
    overlay: seenFrom(disk.settled.file.path, image.file),
  });
  await writeDown(server, disks, images, pending);
  let quiesced = false;
  try {
    quiesced = await whileFrozen(server.host, request.quiesce, () =>
      server.execute('transaction', { actions: actionsOf(plans) }),
    );
  } catch (error) {
    await takeBack(server, images);
    throw error;
  }
  await settleNow(server, images);
  return { id, plan, images, quiesced, deletes };
}

/** Errors: invalid. It becomes part of files' names. */
export function checkName(name: string): void {
  if (/^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$/.test(name)) return;
  const taken = "a letter or digit, then those, '_', '.', '+' or '-', 64 at most";
  throw new BlockError('invalid', `a point in time is called by ${taken}`);
}

function checkDisk({ node, settled, damaged, isUsed }: PointDisk, name: string): void {
  if (!isUsed) {
    const text = `nobody uses disk '${node}', so a new active image would not stay open`;
    throw new BlockError('invalid', `${text}: attach or export it first`);
  }
  checkActive({ node, settled });
  if (damaged.length > 0 && settled.file.sequence === 0) throw new BlockError('corrupt', damaged[0] ?? '');
  if (settled.points.some(({ record }) => record.name === name))
    throw new BlockError('exists', `disk '${settled.file.content.disk}' has a point '${name}' already`);
}

/** Errors: invalid, where a point was opened in place of the disk. */
export function checkActive({ node, settled }: Pick<PointDisk, 'node' | 'settled'>): void {
  if (settled.activeElsewhere === undefined) return;
  const text = `'${node}' holds a point of disk '${settled.file.content.disk}', whose active image is`;
  throw new BlockError('invalid', `${text} '${settled.activeElsewhere}': open that`);
}

/** What a new active image is to be called: beside the old one, by the point's name. */
export async function newImage(
  server: PointServer,
  disk: PointDisk,
  { name, id, index, wanted }: { name: string; id: string; index: number; wanted: WantedDisk | undefined },
): Promise<NewImage> {
  const { content } = disk.settled.file;
  const file = wanted?.file === undefined ? await freeFile(server, disk, name) : posix.resolve(wanted.file);
  if (await server.host.files.stat(file)) throw new BlockError('exists', `'${file}' is there already`);
  return {
    ...{ disk: content.disk, node: disk.node, file },
    'new-node-name': wanted?.['new-node-name'] ?? `pt-${id}-${index}`,
  };
}

async function freeFile({ host }: PointServer, { settled, top }: PointDisk, name: string): Promise<string> {
  const folder = posix.dirname(top.path);
  for (let number = 1; ; number++) {
    const suffix = number === 1 ? '' : `-${number}`;
    const file = posix.join(folder, `${settled.file.content.disk}.after-${name}${suffix}.qcow2`);
    if (!(await host.files.stat(file))) return file;
  }
}

/** All of them, before anything is done. */
export async function writeDown(
  server: PointServer,
  disks: readonly PointDisk[],
  images: readonly NewImage[],
  pending: (disk: PointDisk, image: NewImage) => Pending,
): Promise<void> {
  for (const [i, disk] of disks.entries()) {
    const image = images[i];
    if (image) await keep(server, disk, (content) => ({ ...content, pending: pending(disk, image) }));
  }
}

/**
 * After an error: what was not done is taken back, as the server's images show. What has been done none the less (the guest
 * was not thawed after it, a layer did not close) stays, and so does all where the server cannot be asked any more.
 */
export async function takeBack(server: PointServer, images: readonly NewImage[]): Promise<void> {
  try {
    const open = await openFiles(server);
    for (const { file } of images)
      if (!open.has(file)) await server.host.files.unlink(file).catch(() => undefined);
    const { disks } = await loadDisks(server);
    const names = new Set(images.map(({ disk }) => disk));
    for (const disk of disks)
      if (names.has(disk.settled.file.content.disk)) await keep(server, disk, (content) => content);
  } catch {
    // The first error is what is told; the points files say what was about to be.
  }
}

/** What the chains show is written down. */
export async function settleNow(server: PointServer, images: readonly NewImage[]): Promise<void> {
  const { disks } = await loadDisks(
    server,
    images.map((image) => image['new-node-name']),
  );
  for (const disk of disks) await keep(server, disk, (content): PointFileContent => content);
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
