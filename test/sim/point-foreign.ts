import type { SeededRandom } from '../../src/host/simulated.js';
import { OTHER_FOLDER, type PointDisks } from './point-disks.js';
import type { PointModel } from './point-model.js';

interface Foreign {
  readonly disks: PointDisks;
  readonly model: PointModel;
  readonly random: SeededRandom;
  readonly tell: (line: string) => void;
  readonly stopGuest: () => Promise<void>;
  readonly newName: () => string;
  /** Jobs may be cut short: what they wrote into is then taken to show something else, and so is what stands on it. */
  readonly mayCrash: boolean;
}

/** A stream, a commit within the chain or a layer on top, by plain QMP, of one of the disks; it may go on afterwards. */
export async function doForeign(foreign: Foreign): Promise<void> {
  const { disks, model, random, tell, stopGuest, newName, mayCrash } = foreign;
  const index = random.below(disks.count);
  // What both write at once nobody tells apart: docs/POINTS.md says so.
  if ((await disks.list(index)).points.some(({ state }) => state === 'deleting')) return;
  const layers = disks.layers(index);
  const active = await disks.knownActive(index);
  // Who takes the active image away that a points file names takes the names with it.
  const isKept = (first: number, end: number): boolean =>
    !layers.slice(first, end).some(({ filename }) => active.includes(filename));
  const at = (one: number): string => layers[one]?.name ?? '';
  const kind = random.below(3);
  const id = newName();
  if (kind === 0 && layers.length > 1) {
    const into = random.below(layers.length - 1);
    const base = into + 1 + random.below(layers.length - into);
    if (!isKept(into + 1, base)) return;
    // Of nothing it leaves the chain as it was, and a header that was written.
    await mayLose(
      disks,
      model,
      index,
      layers.slice(mayCrash || base === into + 1 ? 0 : into, base).map(({ filename }) => filename),
    );
    const args = { 'job-id': id, device: at(into), ...(base < layers.length && { 'base-node': at(base) }) };
    tell(`stream of ${index}: ${JSON.stringify(args)}`);
    await disks.execute('block-stream', args);
  } else if (kind === 1 && layers.length > 2) {
    const top = 1 + random.below(layers.length - 2);
    const base = top + 1 + random.below(layers.length - top - 1);
    if (!isKept(top, base)) return;
    await mayLose(
      disks,
      model,
      index,
      layers.slice(mayCrash ? 0 : top - 1, base + 1).map(({ filename }) => filename),
    );
    const args = { 'job-id': id, device: at(0), 'top-node': at(top), 'base-node': at(base) };
    tell(`commit of ${index}: ${JSON.stringify(args)}`);
    await disks.execute('block-commit', args);
  } else {
    const file = `${random.chance(0.3) ? OTHER_FOLDER : '/tmp'}/over-${newName()}.qcow2`;
    await stopGuest();
    const args = { 'node-name': at(0), 'snapshot-file': file, 'snapshot-node-name': id, format: 'qcow2' };
    tell(`layer on ${index}: ${JSON.stringify(args)}`);
    await disks.execute('blockdev-snapshot-sync', args);
    model.active[index] = file;
  }
  if (random.chance(0.5)) await disks.untilNoJob();
}

/** Points that images hold which somebody changes. */
async function mayLose(
  disks: PointDisks,
  model: PointModel,
  index: number,
  files: readonly string[],
): Promise<void> {
  for (const { name, file } of (await disks.list(index)).points)
    if (file === undefined || files.includes(file)) model.expect(index, name, 'unsure');
}
