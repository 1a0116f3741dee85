import { findLayer, type Layer } from './chain.js';
import {
  absoluteFrom,
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
}

/** A points file held against the chain that is there. */
export interface Settled {
  /** With all that was found out; to be written before anything is changed. */
  readonly file: PointFile;
  readonly points: readonly PointState[];
  /** The disk's active image is another one than that on top. */
  readonly activeElsewhere?: string;
}

/**
 * Holds what a points file says against the chain. What was about to be done has been done when its overlay is on top.
 * A point is held by its image as long as that is below another and as it was; when the image has gone down into the one
 * below it (committed), by that. It is lost when its image was written to otherwise, or has been taken in from above
 * (streamed).
 */
export function settle(before: PointFile, layers: readonly Layer[]): Settled {
  const { path } = before;
  const content = withPending(before, layers);
  const after: PointFile = { ...before, content };
  const [top] = layers;
  const isElsewhere = top !== undefined && isBelowActive(after, layers);
  const points = content.points.map((record) =>
    isElsewhere ? stateElsewhere(after, record, layers) : stateOf(after, record, layers),
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
  };
  return {
    file: { ...before, content: settled },
    points: points.map((point, i) => ({ ...point, record: settled.points[i] ?? point.record })),
    ...(isElsewhere && { activeElsewhere: absoluteFrom(path, content.active) }),
  };
}

/** The top is a layer of the disk, and what was active is not in the chain: somebody has opened a point by itself. */
function isBelowActive(file: PointFile, layers: readonly Layer[]): boolean {
  const { content } = file;
  const [top] = layers;
  if (!top || findLayer(layers, file, content.active) || isStampChanged(file, top)) return false;
  const isPoint = ({ lost, deleting }: PointRecord): boolean => lost === undefined && deleting === undefined;
  return content.points.some((point) => isPoint(point) && findLayer([top], file, point.image));
}

function withPending(file: PointFile, layers: readonly Layer[]): PointFileContent {
  const { pending, ...content } = file.content;
  const [top] = layers;
  if (!pending || !top || !findLayer([top], file, pending.overlay)) return content;
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
  const at = content.points.findIndex((point) => point.image === image);
  const kept = content.points.slice(0, at + 1);
  return {
    ...content,
    active: overlay,
    points: kept.map((point, i) => (i === at ? { ...point, overlay } : point)),
  };
}

function stateOf(file: PointFile, record: PointRecord, layers: readonly Layer[]): PointState {
  const known = findLayer(layers, file, record.image);
  const overlay = findLayer(layers, file, record.overlay);
  const above = known && layers[layers.indexOf(known) - 1];
  if (record.deleting !== undefined)
    // Else the copying is done: what is above its image now is another point's.
    return {
      record,
      state: 'deleting',
      ...(known && above && above === overlay && { image: known, overlay }),
    };
  const lost = (why: string): PointState => ({ record, state: 'lost', why });
  if (record.lost !== undefined) return lost(record.lost);
  if (known) {
    if (!above) return lost(`'${record.image}' is on top: what was above it was committed, or is not open`);
    if (isChanged(file, known, layers)) return lost(`'${record.image}' was written to by another program`);
    return { record, state: 'usable', image: known, overlay: above };
  }
  // It has gone down into the image below it, which the same overlay is above now, or up into the overlay.
  const below = overlay && layers[layers.indexOf(overlay) + 1];
  const wasBelow = file.content.images.find((mark) => mark.file === record.image)?.below;
  const isNext = below && wasBelow !== undefined && findLayer([below], file, wasBelow) !== undefined;
  if (isNext && isStampChanged(file, below)) return { record, state: 'usable', image: below, overlay };
  return lost(`'${record.image}' is not in the chain any more`);
}

/** Where a point was opened in place of the disk: what is above it cannot be seen. */
function stateElsewhere(file: PointFile, record: PointRecord, layers: readonly Layer[]): PointState {
  if (record.deleting !== undefined) return { record, state: 'deleting' };
  const image = findLayer(layers, file, record.image);
  if (record.lost !== undefined) return { record, state: 'lost', why: record.lost };
  if (image && !isChanged(file, image, layers)) return { record, state: 'usable', image };
  return { record, state: 'lost', why: `'${record.image}' is not in the chain that is open here` };
}

function isMarked(file: PointFile, layer: Layer): boolean {
  return markFor(file, layer) !== undefined;
}

function markFor({ path, content }: PointFile, layer: Layer): ImageMark | undefined {
  return (
    content.images.find((mark) => absoluteFrom(path, mark.file) === layer.path) ??
    content.images.find((mark) => mark.identity === layer.identity)
  );
}

function isStampChanged(file: PointFile, layer: Layer): boolean {
  const mark = markFor(file, layer);
  return mark !== undefined && (mark.size !== layer.sizeBytes || mark.modified !== layer.modified);
}

/**
 * Whether what an image shows may be another. One that names another layer of the disk, or the same by another name, was
 * written for that, by a job that kept what it shows; so was one into which a point is being streamed.
 */
function isChanged(file: PointFile, layer: Layer, layers: readonly Layer[]): boolean {
  if (!isStampChanged(file, layer)) return false;
  const was = markFor(file, layer)?.below;
  const below = layers[layers.indexOf(layer) + 1];
  const isNamedAnew = below?.path !== (was === undefined ? undefined : absoluteFrom(file.path, was));
  // One that is not of this disk shows something else.
  const gotAnother = isNamedAnew && (!below || isMarked(file, below));
  const isFilled = file.content.points.some(
    ({ deleting, overlay }) => deleting === 'stream' && findLayer([layer], file, overlay),
  );
  return !gotAnother && !isFilled;
}

function stampOf({ sizeBytes, modified }: Layer): Pick<ImageMark, 'size' | 'modified'> {
  return { size: sizeBytes, modified };
}

/** An image as it is now. */
export function markOf(file: PointFile, layer: Layer, below: Layer | undefined): ImageMark {
  const { path } = file;
  return {
    file: seenFrom(path, layer.path),
    identity: layer.identity,
    ...stampOf(layer),
    ...(below && { below: seenFrom(path, below.path) }),
    ours: markFor(file, layer)?.ours ?? file.content.pending?.overlay === seenFrom(path, layer.path),
  };
}
