import { BlockError } from '../../src/base/error.js';
import { readHeader } from '../../src/block/shared-bases.js';
import { OTHER_FOLDER, type PointDisks } from './point-disks.js';
import { alike, bytesOf, type Moment, PIECE_BYTES, type PointModel } from './point-model.js';

export class Violation extends Error {}

/** What the disks show, and their usable points. Errors: Violation. */
export async function checkDisks(disks: PointDisks, model: PointModel): Promise<void> {
  for (let index = 0; index < disks.count; index++) {
    const found = await disks.content(index);
    const expected = model.now[index] ?? [];
    if (!alike(expected, found))
      throw new Violation(`disk ${index} shows ${found.join(' ')}, not ${expected.join(' ')}`);
    await checkPoints(disks, model, index);
  }
}

async function checkPoints(disks: PointDisks, model: PointModel, index: number): Promise<void> {
  const { points } = await disks.list(index);
  const moments = model.moments[index] ?? new Map<string, Moment>();
  for (const { name, state, node = '', why = '' } of points) {
    const moment = moments.get(name);
    if (!moment) throw new Violation(`disk ${index} has point ${name}, which was never made or is deleted`);
    if (moment.expected === 'usable' && state !== 'usable')
      throw new Violation(`point ${name} of disk ${index} is ${state}: ${why}`);
    if (state !== 'usable') continue;
    if (moment.expected === 'gone') throw new Violation(`point ${name} of disk ${index} is there`);
    // A deletion may have taken it out since.
    if (!disks.engine.graph.nodes.has(node)) return checkPoints(disks, model, index);
    const pieces = await disks.contentOfNode(node).catch(async (error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
      if (error.kind === 'not-found') return 'gone' as const;
      // Nobody reads what is being committed. Our own deletions come to their end, and then it is read.
      if (error.kind === 'busy' && model.hasForeign) return 'held' as const;
      if (error.kind === 'busy' && (await disks.isDeleting())) return 'committed' as const;
      throw error;
    });
    if (pieces === 'committed') await disks.untilIdle();
    if (pieces === 'gone' || pieces === 'committed') return checkPoints(disks, model, index);
    if (pieces === 'held') continue;
    if (model.isOneOf(moment, index, pieces)) continue;
    // A job of others may have written to it since it was told.
    const now = (await disks.list(index)).points.find((point) => point.name === name);
    if (now?.state !== 'usable') return checkPoints(disks, model, index);
    const allowed = model.statesOf(moment).map((one) => one[index]?.join(' '));
    throw new Violation(
      `point ${name} of disk ${index} holds ${pieces.join(' ')}, none of ${allowed.join('; ')}`,
    );
  }
  for (const [name, { expected }] of moments)
    if (expected === 'usable' && !points.some((point) => point.name === name))
      throw new Violation(`point ${name} of disk ${index} is not there any more`);
}

/** What disks have left by going back shows what they showed. Errors: Violation. */
export async function checkLeft(disks: PointDisks, model: PointModel): Promise<void> {
  for (const [file, expected] of model.leftContents) {
    const found = await disks.contentOfFile(file).catch((error: unknown) => {
      throw new Violation(`what was left in ${file} cannot be read: ${String(error)}`);
    });
    if (!alike(expected, found))
      throw new Violation(`what was left in ${file} shows ${found.join(' ')}, not ${expected.join(' ')}`);
  }
}

/** What the disks show after a crash is one of the states that it may have left. Errors: Violation. */
export async function recognise(disks: PointDisks, model: PointModel): Promise<void> {
  await finishTorn(disks, model);
  // What a killed process wrote last may be there and not be durable.
  for (const [index] of model.active.entries()) await disks.disk(index).flush();
  const found = await Promise.all(model.active.map((_, i) => disks.content(i)));
  const allowed = [...model.states.slice(model.certain), ...model.others];
  if (!allowed.some((state) => found.every((pieces, i) => alike(state[i], pieces))))
    throw new Violation(`the disks show ${JSON.stringify(found)}, of ${JSON.stringify(allowed)}`);
  model.become(found);
}

/** A record that was being written may be there in part: its guest writes it again. */
async function finishTorn(disks: PointDisks, { states, certain, now }: PointModel): Promise<void> {
  if (states.length - 1 === certain) return;
  for (const [index, pieces] of now.entries())
    for (const [piece, record] of pieces.entries()) {
      const isInFlight = states[certain]?.[index]?.[piece] !== record;
      if (!isInFlight || (await disks.content(index))[piece] !== -1) continue;
      await disks.disk(index).write(piece * PIECE_BYTES, bytesOf(record));
    }
}

/** That of `paths` all images are needed, when all points have been deleted. Errors: Violation. */
export async function checkFiles(
  disks: PointDisks,
  model: PointModel,
  paths: readonly string[],
): Promise<void> {
  const needed = new Set(model.left);
  for (let index = 0; index < disks.count; index++) {
    const layers = disks.layers(index).map(({ filename }) => filename);
    if (layers.length > 1) throw new Violation(`disk ${index} has layers ${layers.join(' ')}`);
    for (const file of layers) needed.add(file);
  }
  for (const file of needed)
    for (const backing of (await readHeader(disks.engine.opener, file))?.backing ?? []) needed.add(backing);
  // The first images are not ours.
  for (const disk of 'abc') needed.add(`/tmp/${disk}.qcow2`);
  const over = paths.filter((path) => /\.(qcow2|new)$/.test(path) && !needed.has(path) && !isCutShort(path));
  if (over.length > 0) throw new Violation(`nobody needs ${over.join(' ')}`);
}

/** Of a file that tells where the points file is: it goes when the disk has an image there again. */
function isCutShort(path: string): boolean {
  return path.startsWith(`${OTHER_FOLDER}/`) && path.endsWith('.new');
}
