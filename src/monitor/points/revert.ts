import { BlockError } from '../../base/error.js';
import type { CommandResult } from '../../schema/commands.js';
import type { Image, View } from '../../view/model.js';
import { planReversal, type Reversal } from '../../view/plan/points.js';
import type { PlannedCommand } from '../../view/plan/types.js';
import type { Layer } from './chain.js';
import { checkKnown, isName, type NewImage, newImage, type WantedDisk } from './create.js';
import { findPoint, loadDisks, type PointDisk } from './disks.js';
import { planInfo } from './plan-info.js';
import { type Pending, seenFrom } from './point-file.js';
import { closingAbove, SentCommands } from './left-open.js';
import type { PointServer } from './server.js';
import { pointsKept } from './settle.js';
import { whileWrittenDown } from './written-down.js';

export interface RevertRequest {
  /** Of the point; or `image`, by its node's name. */
  readonly name?: string | undefined;
  readonly image?: string | undefined;
  readonly disks?: readonly WantedDisk[] | undefined;
  readonly isDryRun: boolean;
}

/** How a disk goes back, and the file that what it goes back to is in. */
export interface DiskReversal extends Reversal {
  readonly path: string;
}

/** How the users of disks go over to new images above the points, all at once or not at all. */
export interface DiskSwitch {
  /** Errors: busy, with who writes; unsupported. */
  check(reversals: readonly DiskReversal[]): void | Promise<void>;
  run(reversals: readonly DiskReversal[]): Promise<void>;
  /** What is sent where it is done by plain QMP. */
  commands?(reversals: readonly DiskReversal[]): PlannedCommand[];
}

/** What is told where a disk cannot go back yet; all of it in the message, which goes over QMP. */
export function mayBeWritten({ label }: Image, writers: string): BlockError {
  const next = 'shut the guest down, or take a writable export away, and ask again';
  const text = `the disk '${label}' cannot go back while it may be written to: ${writers}`;
  return new BlockError('busy', `${text}; ${next}`);
}

export type Reverted = CommandResult<'x-point-revert'>;

/** What a disk goes back to. */
interface Goal {
  readonly disk: PointDisk;
  readonly layer: Layer;
}

/**
 * Disks go back to a point in time, or one to an image of its chain, all at one moment. What was written since is left,
 * with later points; the files stay. Errors: not-found; busy while somebody may write; those of making images. Nothing has
 * changed then.
 */
export async function revertToPoint(
  server: PointServer,
  { name, image: imageId, disks: wanted, isDryRun }: RevertRequest,
  disksSwitch: DiskSwitch,
): Promise<{ answer: Reverted; commands: PlannedCommand[] }> {
  const { view, disks } = await loadDisks(
    server,
    wanted?.map(({ node }) => node),
  );
  const goals = goalsOf(disks, { name, image: imageId }, wanted !== undefined);
  const id = server.host.random.bytes(4).toString('hex');
  const called = name ?? (isName(imageId ?? '') ? (imageId ?? '') : 'going-back');
  const images: NewImage[] = [];
  for (const [index, { disk }] of goals.entries())
    images.push(await newImage(server, disk, { name: called, id, others: images, wanted: wanted?.[index] }));
  const reversals = goals.map((goal, i) => reversalOf(view, goal, images[i]));
  await disksSwitch.check(reversals);
  const closings = goals.map(({ disk }) => closingAbove(disk));
  const closes = closings.flatMap(({ commands }) => commands);
  const plan = planInfo({
    words: [...[...closings, ...reversals].flatMap(({ words }) => words), ...lostWith(goals)],
    bytesAtMost: 0,
    ends: goals.flatMap(({ disk }, i) =>
      (reversals[i]?.ends ?? []).flatMap(
        (one) => disk.layers.find(({ image }) => image.id === one)?.path ?? [],
      ),
    ),
    users: reversals.flatMap(({ users }) => users.map(({ label }) => label)),
  });
  const planned = {
    answer: { id, plan, images },
    commands: [...closes, ...(disksSwitch.commands?.(reversals) ?? [])],
  };
  if (isDryRun) return planned;
  const created = server.host.clock.wallClock().seconds;
  const goalDisks = goals.map(({ disk }) => disk);
  const pendingOf = (disk: PointDisk, { file }: NewImage): Pending => {
    const { path } = disk.settled.file;
    const goal = goals[goalDisks.indexOf(disk)];
    return {
      ...{ what: 'revert', name: called, id, created, disks: goals.length },
      image: seenFrom(path, goal?.layer.path ?? ''),
      overlay: seenFrom(path, file),
    };
  };
  const sent = new SentCommands();
  await sent.during(() =>
    whileWrittenDown(server, { disks: goalDisks, images, pendingOf }, async () => {
      await sent.send(server, closes);
      await disksSwitch.run(reversals);
    }),
  );
  return planned;
}

/** Errors: invalid, not-found. */
function goalsOf(
  disks: readonly PointDisk[],
  { name, image }: Pick<RevertRequest, 'name' | 'image'>,
  isPart: boolean,
): Goal[] {
  if ((name === undefined) === (image === undefined))
    throw new BlockError('invalid', "either 'name' or 'image' says what is gone back to");
  const goals = name === undefined ? [imageGoal(disks, image ?? '')] : pointGoals(disks, name, isPart);
  for (const { disk } of goals) checkKnown(disk);
  return goals;
}

function pointGoals(disks: readonly PointDisk[], name: string, isPart: boolean): Goal[] {
  const found = findPoint(disks, name, isPart);
  const without = disks.find((disk) => isPart && !found.some((one) => one.disk === disk));
  if (without)
    throw new BlockError('not-found', `disk '${without.settled.file.content.disk}' has no point '${name}'`);
  return found.map(({ disk, point: { state, image } }) => {
    if (state === 'usable' && image) return { disk, layer: image };
    throw new BlockError(
      'invalid',
      `point '${name}' of disk '${disk.settled.file.content.disk}' is ${state}`,
    );
  });
}

function imageGoal(disks: readonly PointDisk[], name: string): Goal {
  const by = (isMeant: (image: Image) => boolean): Goal[] =>
    disks.flatMap((disk) =>
      disk.layers.filter(({ image }) => isMeant(image)).map((layer) => ({ disk, layer })),
    );
  const named = by(({ id }) => id === name);
  // One that was opened without a name is shown by its file's.
  const goals = named.length > 0 ? named : by(({ label }) => label === name);
  const [goal, ...more] = goals;
  if (!goal) throw new BlockError('not-found', `no disk has the image '${name}' in a file of its chain`);
  if (more.length > 0)
    throw new BlockError('invalid', `'${name}' is below ${goals.length} disks: say which goes back`);
  return goal;
}

function reversalOf(view: View, { disk, layer }: Goal, image: NewImage | undefined): DiskReversal {
  const reversal = planReversal(view, {
    top: disk.node,
    id: layer.image.id,
    node: image?.['new-node-name'] ?? '',
    file: image?.file ?? '',
  });
  return { ...reversal, path: layer.path };
}

/** Later points, which go with what is left. */
function lostWith(goals: readonly Goal[]): string[] {
  const names = goals.flatMap(({ disk: { settled }, layer }) => {
    const { path, content } = settled.file;
    const later = content.points.slice(pointsKept(content, seenFrom(path, layer.path)));
    return later.map(({ name }) => `'${name}'`);
  });
  return names.length === 0 ? [] : [`Later points are no more: ${[...new Set(names)].join(', ')}.`];
}
