import { BlockError } from '../../base/error.js';
import type { CommandResult } from '../../schema/commands.js';
import type { View } from '../../view/model.js';
import { planReversal, type Reversal } from '../../view/plan/points.js';
import {
  checkActive,
  type NewImage,
  newImage,
  settleNow,
  takeBack,
  type WantedDisk,
  writeDown,
} from './create.js';
import { findPoint, type FoundPoint, loadDisks } from './disks.js';
import { planInfo } from './plan-info.js';
import { type Pending, seenFrom } from './point-file.js';
import type { PointServer } from './server.js';

export interface RevertRequest {
  readonly name: string;
  readonly disks?: readonly WantedDisk[] | undefined;
  readonly isDryRun: boolean;
}

/** How the users of disks go over to new images above the points, all at once or not at all. */
export interface DiskSwitch {
  /** Errors: busy, with who writes. */
  check(reversals: readonly Reversal[]): void;
  run(reversals: readonly Reversal[]): Promise<void>;
}

export type Reverted = CommandResult<'x-point-revert'>;

/**
 * Disks go back to a point in time, all at one moment. What was written since is left, with later points; the files stay.
 * Errors: not-found; busy while somebody may write; those of making images. Nothing has changed then.
 */
export async function revertToPoint(
  server: PointServer,
  { name, disks: wanted, isDryRun }: RevertRequest,
  disksSwitch: DiskSwitch,
): Promise<Reverted> {
  const { view, disks } = await loadDisks(
    server,
    wanted?.map(({ node }) => node),
  );
  const found = findPoint(disks, name, wanted !== undefined);
  const id = server.host.random.bytes(4).toString('hex');
  const images: NewImage[] = [];
  for (const [i, { disk, point }] of found.entries()) {
    checkActive(disk);
    if (point.state !== 'usable')
      throw new BlockError(
        'invalid',
        `point '${name}' of disk '${disk.settled.file.content.disk}' is ${point.state}`,
      );
    images.push(await newImage(server, disk, { name, id, index: i, wanted: wanted?.[i] }));
  }
  const reversals = found.map((one, i) => reversalOf(view, one, images[i]));
  disksSwitch.check(reversals);
  const plan = planInfo({
    words: [...reversals.flatMap(({ words }) => words), ...lostWith(found)],
    bytesAtMost: 0,
    ends: found.flatMap(({ disk }, i) =>
      (reversals[i]?.ends ?? []).flatMap(
        (one) => disk.layers.find(({ image }) => image.id === one)?.path ?? [],
      ),
    ),
    users: reversals.flatMap(({ users }) => users.map(({ label }) => label)),
  });
  if (isDryRun) return { id, plan, images };
  const created = server.host.clock.wallClock().seconds;
  await writeDown(
    server,
    found.map(({ disk }) => disk),
    images,
    (disk, image): Pending => {
      const { path } = disk.settled.file;
      const point = found.find((one) => one.disk === disk)?.point;
      return {
        ...{ what: 'revert', name, id, created, disks: found.length },
        image: seenFrom(path, point?.image?.path ?? ''),
        overlay: seenFrom(path, image.file),
      };
    },
  );
  try {
    await disksSwitch.run(reversals);
  } catch (error) {
    await takeBack(server, images);
    throw error;
  }
  await settleNow(server, images);
  return { id, plan, images };
}

function reversalOf(view: View, { disk, point }: FoundPoint, image: NewImage | undefined): Reversal {
  return planReversal(view, {
    top: disk.node,
    id: point.image?.image.id ?? '',
    node: image?.['new-node-name'] ?? '',
    file: image?.file ?? '',
  });
}

/** Later points, which go with what is left. */
function lostWith(found: readonly FoundPoint[]): string[] {
  const names = found.flatMap(({ disk: { settled }, point }) =>
    settled.points.slice(settled.points.indexOf(point) + 1).map(({ record }) => `'${record.name}'`),
  );
  return names.length === 0 ? [] : [`Later points are no more: ${[...new Set(names)].join(', ')}.`];
}
