import { findLayer, isSameFile, type Layer } from './chain.js';
import {
  absoluteFrom,
  MAX_LEFT_IMAGES,
  MAX_UNNEEDED_FILES,
  type ImageMark,
  type PointFile,
  type PointFileContent,
  type PointRecord,
  seenFrom,
} from './point-file.js';

/** What a point is, seen on the real chain. */
export interface PointState {
  readonly record: PointRecord;
  readonly state: 'usable' | 'deleting' | 'lost';
  /** Holds it. */
  readonly image?: Layer;
  readonly overlay?: Layer;
  /** Why it is lost, in words. */
  readonly why?: string;
  /** It is not, where the image below shows what its own did. */
  readonly doubt?: Doubt;
  /** Something below its image was written to, and no job is known that does so. */
  readonly isUndermined?: true;
}

/** A points file held against the chain that is there. */
export interface Settled {
  /** With all that was found out; to be written before anything is changed. */
  readonly file: PointFile;
  readonly points: readonly PointState[];
  /** The disk's active image is another one than that on top. */
  readonly activeElsewhere?: string;
  /** It is not, where the top shows all that it holds: it has been committed. */
  readonly activeDoubt?: ActiveDoubt;
}

/** The active image is gone from the chain, and what is on top now held a point, and was written to since. */
export interface ActiveDoubt extends Pick<Doubt, 'path' | 'below'> {
  /** By what leaves the point as it is: a deletion of ours, or a stream. */
  readonly isExplained: boolean;
}

/** A stream or a commit that works in a chain: what the images of `from` hold goes into `to`. */
export interface ChainJob {
  readonly to: Layer;
  /** Top first; of a stream those below. */
  readonly from: readonly Layer[];
}

/** What there is to know besides the chain. */
export interface SettleLook {
  /** Something was written into the overlay of what was about to be done: it has been done, though another image is on top. */
  readonly isOverlayWritten: boolean;
  /** Who is about to do it is there. */
  readonly isVerbRunning: boolean;
  readonly jobs: readonly ChainJob[];
}

/** What has gone down into images below it, where only they can say so. */
export interface Committed {
  /** Ids of points. */
  readonly points: ReadonlySet<string>;
  readonly isActive: boolean;
}

const NONE_COMMITTED: Committed = { points: new Set(), isActive: false };

/** An image that held a point is not in the chain any more: it has gone down into the one that is below its place now, or up. */
export interface Doubt {
  readonly id: string;
  /** Of the image that is gone. */
  readonly path: string;
  readonly below: Layer;
}

/**
 * Holds what a points file says against the chain. What was about to be done has been done when its overlay is in it.
 * A point is held by its image as long as that is below another and as it was; when the image has gone down into the one
 * below it (committed), by that. It is lost when its image, or one that it is seen through to, was written to otherwise, or
 * has been taken in from above (streamed).
 */
export function settle(
  before: PointFile,
  layers: readonly Layer[],
  look: SettleLook,
  committed = NONE_COMMITTED,
): Settled {
  const { isOverlayWritten } = look;
  const { path } = before;
  const content = withPending(before, layers, look);
  const after: PointFile = { ...before, content };
  const [top] = layers;
  const isLeft = isOverlayWritten && !findLayer(layers, after, content.active);
  const isBelow = isLeft ? 'yes' : isBelowActive(after, layers);
  const isElsewhere = isBelow === 'yes' || (isBelow !== 'no' && !committed.isActive);
  const points = content.points.map((record) =>
    isElsewhere
      ? stateElsewhere(after, record, layers, look)
      : stateOf(after, record, layers, { ...look, committed: committed.points }),
  );
  const settled: PointFileContent = {
    disk: content.disk,
    active: isElsewhere || !top ? content.active : seenFrom(path, top.path),
    images: isElsewhere ? content.images : layers.map((layer, i) => markOf(before, layer, layers[i + 1])),
    points: points.map(({ record, image, overlay, why }) => ({
      ...record,
      ...(image && { image: seenFrom(path, image.path) }),
      ...(overlay && { overlay: seenFrom(path, overlay.path) }),
      ...(why !== undefined && { lost: why }),
    })),
    ...(content.pending && { pending: content.pending }),
    ...(content.frozen !== undefined && { frozen: content.frozen }),
    ...(content.left && { left: content.left }),
    ...(content.unneeded && {
      unneeded: content.unneeded.filter(({ file }) => !findLayer(layers, after, file)),
    }),
  };
  return {
    file: { ...before, content: settled },
    points: points.map((point, i) => ({ ...point, record: settled.points[i] ?? point.record })),
    ...(isElsewhere && { activeElsewhere: absoluteFrom(path, content.active) }),
    ...(isBelow !== 'yes' && isBelow !== 'no' && { activeDoubt: isBelow }),
  };
}

/** Whether what is active is not in the chain, and the top is a point, or was active before the disk went back. */
function isBelowActive(file: PointFile, layers: readonly Layer[]): 'yes' | 'no' | ActiveDoubt {
  const { content } = file;
  const [top] = layers;
  if (!top || findLayer(layers, file, content.active)) return 'no';
  if (content.left?.some((name) => findLayer([top], file, name))) return 'yes';
  // One that has been committed into is what the disk holds now, one that was streamed away is not.
  const isPoint = ({ lost, deleting }: PointRecord): boolean => lost === undefined && deleting !== 'commit';
  if (!content.points.some((point) => isPoint(point) && findLayer([top], file, point.image))) return 'no';
  if (!isStampChanged(file, top)) return 'yes';
  const isExplained = !isChanged(file, top, layers) || isNamedAnew(file, top, layers);
  return { path: absoluteFrom(file.path, content.active), below: top, isExplained };
}

function withPending(
  file: PointFile,
  layers: readonly Layer[],
  { isOverlayWritten, isVerbRunning }: SettleLook,
): PointFileContent {
  const { pending, ...rest } = file.content;
  if (!pending) return rest;
  // Who thaws it says so, and may have died before.
  const content = pending.agent === undefined ? rest : { ...rest, frozen: pending.agent };
  // Another program may have made a layer above it.
  if (!isOverlayWritten && !findLayer(layers, file, pending.overlay)) {
    const neverUsed = { file: pending.overlay, on: pending.image };
    const unneeded = [...(content.unneeded ?? []), neverUsed].slice(-MAX_UNNEEDED_FILES);
    return isVerbRunning ? file.content : { ...content, unneeded };
  }
  const { name, id, created, disks, image, overlay } = pending;
  if (pending.what === 'create') {
    // Since then nobody has written to what was active.
    const images = content.images.map((mark) => {
      const layer = mark.file === image ? findLayer(layers, file, image) : undefined;
      return layer ? { ...mark, ...stampOf(layer) } : mark;
    });
    return {
      ...{ ...content, active: overlay, images },
      points: [...content.points, { name, id, created, disks, image, overlay }],
    };
  }
  const points = content.points.map((point) => withoutLeft(file, point, layers));
  const keptCount = pointsKept(content, image);
  // Images that deletions had copied before stay in nobody's chain.
  const ended = points.slice(keptCount).flatMap(({ ends = [] }) => ends);
  const unneeded = [...(content.unneeded ?? []), ...ended].slice(-MAX_UNNEEDED_FILES);
  const isHeldThere = ({ image: held, deleting }: PointRecord): boolean =>
    held === image && deleting === undefined;
  return {
    ...content,
    active: overlay,
    left: [...(content.left ?? []), content.active].slice(-MAX_LEFT_IMAGES),
    points: points.slice(0, keptCount).map((point) => (isHeldThere(point) ? { ...point, overlay } : point)),
    ...(unneeded.length > 0 && { unneeded }),
  };
}

/** What was to end with a deletion, and is left by going back before that, is its user's. */
function withoutLeft(
  { content, path }: PointFile,
  point: PointRecord,
  layers: readonly Layer[],
): PointRecord {
  const isLeft = (name: string): boolean =>
    content.images.some((mark) => mark.file === name) && !findLayer(layers, { content, path }, name);
  return point.ends ? { ...point, ends: point.ends.filter(({ file }) => !isLeft(file)) } : point;
}

/** How many of the points are still points when the disk goes back to `image`: up to the last that it or one below holds. */
export function pointsKept(
  { images, points }: Pick<PointFileContent, 'images' | 'points'>,
  image: string,
): number {
  const depthOf = (name: string): number => images.findIndex(({ file }) => file === name);
  const depth = depthOf(image);
  return points.findLastIndex(({ image: held }) => held === image || depthOf(held) > depth) + 1;
}

function stateOf(
  file: PointFile,
  record: PointRecord,
  layers: readonly Layer[],
  { jobs, committed }: Pick<SettleLook, 'jobs'> & { committed: ReadonlySet<string> },
): PointState {
  if (record.deleting !== undefined) return deletingState(file, record, layers);
  const known = findLayer(layers, file, record.image);
  const overlay = findLayer(layers, file, record.overlay);
  const above = known && layers[layers.indexOf(known) - 1];
  const lost = (why: string): PointState => ({ record, state: 'lost', why });
  if (record.lost !== undefined) return lost(record.lost);
  if (known) {
    if (!above) return lost(`'${record.image}' is on top: what was above it was committed, or is not open`);
    if (isChanged(file, known, layers)) return lost(`'${record.image}' was written to by another program`);
    return usableUnlessUndermined(
      file,
      { record, state: 'usable', image: known, overlay: above },
      layers,
      jobs,
    );
  }
  // It has gone down into the image below it, which the same overlay is above now, or up into the overlay.
  const below = overlay && layers[layers.indexOf(overlay) + 1];
  const wasBelow = file.content.images.find((mark) => mark.file === record.image)?.below;
  const isNext = below && wasBelow !== undefined && findLayer([below], file, wasBelow) !== undefined;
  // Of our own deletions it is known.
  const isKnown = isNext && below === heldNow(file, layers, record.image, 'commit');
  if (isNext && (isKnown || committed.has(record.id)))
    return usableUnlessUndermined(file, { record, state: 'usable', image: below, overlay }, layers, jobs);
  const state = lost(`'${record.image}' is not in the chain any more`);
  const path = absoluteFrom(file.path, record.image);
  return isNext && isStampChanged(file, below) ? { ...state, doubt: { id: record.id, path, below } } : state;
}

/** With the images between which is yet to be copied; without them that is done. Deletions of other points may have moved both. */
function deletingState(file: PointFile, record: PointRecord, layers: readonly Layer[]): PointState {
  const image = heldNow(file, layers, record.image, 'commit');
  const overlay = heldNow(file, layers, record.overlay, 'stream');
  const isLeft = image !== undefined && layers[layers.indexOf(image) - 1] === overlay;
  return { record, state: 'deleting', ...(isLeft && overlay && { image, overlay }) };
}

/** Where what an image held is now: in that, or where deletions of points by `way` have copied it when they took the image out. */
function heldNow(
  file: PointFile,
  layers: readonly Layer[],
  name: string,
  way: NonNullable<PointRecord['deleting']>,
  deletions: readonly PointRecord[] = file.content.points.filter(({ deleting }) => deleting === way),
): Layer | undefined {
  const layer = findLayer(layers, file, name);
  if (layer) return layer;
  const by = deletions.find(({ image, overlay }) => name === (way === 'commit' ? overlay : image));
  const others = deletions.filter((one) => one !== by);
  return by && heldNow(file, layers, way === 'commit' ? by.image : by.overlay, way, others);
}

/** Where a point was opened in place of the disk: what is above it cannot be seen. */
function stateElsewhere(
  file: PointFile,
  record: PointRecord,
  layers: readonly Layer[],
  { jobs }: Pick<SettleLook, 'jobs'>,
): PointState {
  if (record.deleting !== undefined) return { record, state: 'deleting' };
  const image = findLayer(layers, file, record.image);
  if (record.lost !== undefined) return { record, state: 'lost', why: record.lost };
  if (image && !isChanged(file, image, layers))
    return usableUnlessUndermined(file, { record, state: 'usable', image }, layers, jobs);
  return { record, state: 'lost', why: `'${record.image}' is not in the chain that is open here` };
}

/** A point shows what is below its image, too. */
function usableUnlessUndermined(
  file: PointFile,
  point: PointState & { readonly image: Layer },
  layers: readonly Layer[],
  jobs: readonly ChainJob[],
): PointState {
  const below = layers.slice(layers.indexOf(point.image) + 1);
  const changed = below.find((layer) => isUndermining(file, layer, { layers, jobs, image: point.image }));
  if (!changed) return point;
  const why = `'${seenFrom(file.path, changed.path)}', which it stands on, was written to by another program`;
  return { record: point.record, state: 'lost', why, isUndermined: true };
}

/**
 * Whether a layer shows something else to an image above it. What a commit writes into it is what the image shows that the
 * commit begins at, and so all above that: but not those between. One that has ended has taken them out of the chain.
 */
function isUndermining(
  file: PointFile,
  layer: Layer,
  { layers, jobs, image }: { layers: readonly Layer[]; jobs: readonly ChainJob[]; image: Layer },
): boolean {
  if (!isChanged(file, layer, layers) || hasLostAbove(file, layer, layers)) return false;
  const isCommittedByUs = file.content.points.some(
    ({ deleting, image: held }) => deleting === 'commit' && heldNow(file, layers, held, 'commit') === layer,
  );
  const isHarmless = ({ to, from }: ChainJob): boolean => to === layer && !from.slice(1).includes(image);
  return !isCommittedByUs && !jobs.some(isHarmless);
}

function isMarked(file: PointFile, layer: Layer): boolean {
  return markFor(file, layer) !== undefined;
}

function markFor({ path, content }: PointFile, layer: Layer): ImageMark | undefined {
  return (
    content.images.find((mark) => absoluteFrom(path, mark.file) === layer.path) ??
    content.images.find((mark) => isSameFile(mark, layer))
  );
}

function isStampChanged(file: PointFile, layer: Layer): boolean {
  const mark = markFor(file, layer);
  return mark !== undefined && (mark.size !== layer.sizeBytes || mark.modified !== layer.modified);
}

/**
 * Whether what an image shows may be another. One that names another layer of the disk, or the same by another name, was
 * written for that, by a job that kept what it shows; so was one into which a point is being streamed. But where the image above
 * it is gone, that may have been committed into it as well.
 */
function isChanged(file: PointFile, layer: Layer, layers: readonly Layer[]): boolean {
  if (!isStampChanged(file, layer)) return false;
  const gotAnother = isNamedAnew(file, layer, layers) && !hasLostAbove(file, layer, layers);
  // A deletion of ours fills an image, or names another one in that above it, before that shows in the chain.
  const above = (name: string): Layer | undefined => {
    const overlay = findLayer(layers, file, name);
    return overlay && layers[layers.indexOf(overlay) - 1];
  };
  const isFilled = file.content.points.some(({ deleting, overlay }) =>
    deleting === 'stream'
      ? findLayer([layer], file, overlay)
      : deleting === 'commit' && above(overlay) === layer,
  );
  return !gotAnother && !isFilled;
}

/** An image names another one below it than it did, or none. One that is not of this disk shows something else. */
function isNamedAnew(file: PointFile, layer: Layer, layers: readonly Layer[]): boolean {
  const was = markFor(file, layer)?.below;
  const below = layers[layers.indexOf(layer) + 1];
  if (below && !isMarked(file, below)) return false;
  return below?.path !== (was === undefined ? undefined : absoluteFrom(file.path, was));
}

/** The image above it is not in the chain any more, and no deletion of ours has copied it up. */
function hasLostAbove(file: PointFile, layer: Layer, layers: readonly Layer[]): boolean {
  const { images } = file.content;
  const mark = markFor(file, layer);
  const above = mark && images[images.indexOf(mark) - 1];
  return above !== undefined && heldNow(file, layers, above.file, 'stream') === undefined;
}

function stampOf({ sizeBytes, modified }: Layer): Pick<ImageMark, 'size' | 'modified'> {
  return { size: sizeBytes, modified };
}

/** An image as it is now. */
export function markOf(file: PointFile, layer: Layer, below: Layer | undefined): ImageMark {
  const { path } = file;
  const mark = markFor(file, layer);
  const { identity, born } = layer;
  const isMade = file.content.pending?.overlay === seenFrom(path, layer.path);
  return {
    file: seenFrom(path, layer.path),
    identity,
    ...(born !== undefined && { born }),
    ...stampOf(layer),
    ...(below && { below: seenFrom(path, below.path) }),
    // Another file may have been put in its place.
    ours: mark && isSameFile(mark, layer) ? mark.ours : isMade,
  };
}
