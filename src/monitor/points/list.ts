import type { CommandResult } from '../../schema/commands.js';
import { given } from '../../base/given.js';
import { loadDisks, type PointDisk } from './disks.js';
import type { PointServer } from './server.js';
import type { PointState } from './settle.js';

export type PointList = CommandResult<'x-point-list'>;

/** The points of disks, as their chains show them now; changes nothing. */
export async function listPoints(
  server: PointServer,
  nodes: readonly string[] | undefined,
  failureOf: (id: string) => string | undefined,
): Promise<PointList['disks']> {
  const { disks } = await loadDisks(server, nodes);
  return disks.map((disk) => diskInfo(disk, failureOf));
}

function diskInfo(
  { node, top, settled }: PointDisk,
  failureOf: (id: string) => string | undefined,
): PointList['disks'][number] {
  const { path, content, sequence } = settled.file;
  return given({
    ...{
      disk: content.disk,
      node,
      file: top.path,
      points: settled.points.map((point) => pointInfo(point, failureOf)),
    },
    'points-file': sequence === 0 ? undefined : path,
    'active-elsewhere': settled.activeElsewhere,
  });
}

function pointInfo(
  { record, state, image, why }: PointState,
  failureOf: (id: string) => string | undefined,
): PointList['disks'][number]['points'][number] {
  const { name, id, created, disks } = record;
  return given({
    ...{ name, id, created, disks, state },
    node: image?.image.id,
    file: image?.path,
    bytes: image?.image.allocatedBytes,
    why: why ?? failureOf(id),
  });
}
