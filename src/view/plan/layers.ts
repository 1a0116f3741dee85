import { type Image, imageOf, isLivedisk, type View } from '../model.js';
import { humanBytes } from '../progress-meter.js';
import { bracketed } from '../words.js';
import { allocatedOf, Change, layersOf, topOf, wayDown } from './change.js';
import {
  areFree,
  diskOf,
  isNewFile,
  isNewNode,
  isUsed,
  listed,
  newJobId,
  refuse,
  startsJob,
  theImage,
} from './checks.js';
import type { Action, InvalidImage, Plan } from './types.js';

type Of<K extends Action['kind']> = Extract<Action, { kind: K }>;

/** A new active layer above the image. */
export function planSnapshot(view: View, action: Of<'snapshot'>): Plan {
  const image = theImage(view, action.image);
  areFree(view, [image]);
  if (image.overlays.length > 0)
    refuse(`${bracketed(image)} is not written any more: it is a point in time already`);
  isUsed(view, image);
  isNewNode(view, action.node);
  isNewFile(view, action.file);
  // Of a disk that nobody may write to, as the disk is.
  const overlay = { ...overlayOf(image, action), isReadOnly: image.isReadOnly };
  const change = new Change(view);
  change.replace(image.id, action.node);
  change.add(overlay);
  change.update(image.id, { isReadOnly: true });
  return {
    action,
    words: [
      `${bracketed(image)} keeps what the disk holds at this moment.`,
      `A new image [${action.node}] above it takes what is written from now on; whoever uses ${bracketed(image)} goes over to it.`,
    ],
    commands: [
      {
        execute: 'blockdev-snapshot-sync',
        arguments: {
          'node-name': image.id,
          'snapshot-file': action.file,
          'snapshot-node-name': action.node,
          format: 'qcow2',
        },
      },
    ],
    bytesAtMost: 0,
    invalid: [],
    after: change.result(),
    undo: `Commit [${action.node}] into ${bracketed(image)}; the moment that it holds is forgotten.`,
    takenBackBy: { kind: 'commit', image: action.node, base: image.id },
  };
}

/** A new image above one, which is empty. */
export function overlayOf(image: Image, { node, file }: { node: string; file: string }): Image {
  return {
    ...image,
    ...{ id: node, label: node, driver: 'qcow2', filename: file, allocatedBytes: 0 },
    ...{ isReadOnly: false, isCorrupt: false, isImplicit: false, bitmaps: [], snapshotNames: [] },
    children: [{ role: 'backing', id: image.id }],
  };
}

/** Layers below the image, down to the base that stays, flow into it. */
export function planStream(view: View, action: Of<'stream'>): Plan {
  const image = theImage(view, action.image);
  const way = wayDown(view, image.id).slice(1);
  const end = action.base === undefined ? way.length : way.findIndex(({ id }) => id === action.base);
  if (end < 0) refuse(`'${action.base ?? ''}' is not below ${bracketed(image)}`);
  const between = way.slice(0, end);
  if (between.length === 0) refuse(`there is nothing between ${bracketed(image)} and what stays below it`);
  areFree(view, [image, ...between]);
  const base = way[end];
  const jobId = newJobId(view, 'stream');
  const change = new Change(view);
  change.rebase(image.id, base?.id);
  change.drop(between.map(({ id }) => id));
  const bytesAtMost = allocatedOf(view, between);
  const rest = base ? `${bracketed(base)} stays below it` : 'it then needs no other';
  return {
    action,
    words: [
      `Data of ${listed(baseFirst(between))} are copied into ${bracketed(image)}, ${humanBytes(bytesAtMost)} at most; ${rest}.`,
      `The files of ${listed(baseFirst(between))} stay as they are, and the disk's chain does without them.`,
    ],
    commands: [
      {
        execute: 'block-stream',
        arguments: { 'job-id': jobId, device: image.id, ...(base && { 'base-node': base.id }) },
      },
    ],
    bytesAtMost,
    copies: { image: image.id, first: 1, end: 1 + layersOf(between) },
    invalid: [],
    after: change.result(),
    undo: 'Cancel the job while it runs; afterwards nothing takes it back, and nothing has to: the disk shows the same.',
    ...startsJob(jobId),
  };
}

/** The image, and layers between it and the base, flow into the base. */
export function planCommit(view: View, action: Of<'commit'>): Plan {
  const image = theImage(view, action.image);
  const base = theImage(view, action.base);
  const way = wayDown(view, image.id);
  const end = way.indexOf(base);
  if (end < 1) refuse(`${bracketed(base)} is not below ${bracketed(image)}`);
  const flowing = way.slice(0, end);
  const top = topOf(view, image.id);
  if (!top) refuse(`${bracketed(image)} is the backing file of several images, which would all be changed`);
  areFree(view, [...flowing, base]);
  const disk = diskOf(view, top);
  // The server refuses it, too: they would show what is not theirs.
  const changing = new Set(way.slice(1, end + 1).map(({ id }) => id));
  const others = view.images.filter(
    (one) =>
      !way.includes(one) && one.children.some(({ role, id }) => role === 'backing' && changing.has(id)),
  );
  if (others.length > 0)
    refuse(`${listed(others)} would show what is not theirs: they lie above what changes`);
  const isActive = image.overlays.length === 0;
  if (!isActive) endsAlike(view, image, base);
  const virtualBytes = Math.max(image.virtualBytes, base.virtualBytes);
  const jobId = newJobId(view, 'commit');
  const invalid = invalidAfterCommit(view, { image, base, isActive });
  const change = new Change(view);
  change.replace(image.id, base.id);
  change.update(base.id, { virtualBytes, ...(isActive && { isReadOnly: image.isReadOnly }) });
  change.drop(flowing.map(({ id }) => id));
  const bytesAtMost = allocatedOf(view, flowing);
  return {
    action,
    words: [
      `Data of ${listed(baseFirst(flowing))} are copied into ${bracketed(base)}, ${humanBytes(bytesAtMost)} at most.`,
      isActive
        ? `When the job is ready, completing it makes the guest go over to ${bracketed(base)}.`
        : `The images above go over to ${bracketed(base)} by themselves.`,
      `What ${bracketed(base)} held until now is gone.`,
      ...(isActive && virtualBytes > image.virtualBytes
        ? [
            `The disk changes from ${humanBytes(image.virtualBytes)} to ${humanBytes(virtualBytes)}: what ${bracketed(base)} has beyond the old end is shown.`,
          ]
        : []),
    ],
    commands: [
      {
        execute: 'block-commit',
        arguments: {
          ...{ 'job-id': jobId, device: disk.id, 'base-node': base.id },
          ...(disk !== image && { 'top-node': image.id }),
        },
      },
      ...(isActive ? [{ execute: 'job-complete', arguments: { id: jobId }, afterReady: true }] : []),
    ],
    bytesAtMost,
    copies: { image: image.id, first: 0, end: layersOf(flowing) },
    invalid,
    after: change.result(),
    undo: `Cancel the job while it runs: the chain stays, but what ${bracketed(base)} held alone is gone from its first byte on.`,
    ...startsJob(jobId),
  };
}

/**
 * Above an image that is shorter than they are, images read zeroes beyond its end; of a longer base they would read what it
 * has there. livedisk writes zeroes first, QEMU (7.2 and 10.0) does not. Errors: invalid.
 */
function endsAlike(view: View, { overlays, virtualBytes }: Image, base: Image): void {
  if (base.virtualBytes <= virtualBytes || isLivedisk(view.server)) return;
  const above = overlays
    .flatMap((id) => imageOf(view, id) ?? [])
    .filter((overlay) => overlay.virtualBytes > virtualBytes);
  if (above.length > 0)
    refuse(
      `${bracketed(base)} is longer than what flows into it: beyond the end ${listed(above)} would show what is not theirs`,
    );
}

/**
 * The base then holds what the committed image shows. Whoever comes to the base by another way than through that image
 * finds data there that are not its own; and when the guest goes on writing to the base, so does who comes through it.
 */
function invalidAfterCommit(
  view: View,
  { image, base, isActive }: { image: Image; base: Image; isActive: boolean },
): InvalidImage[] {
  const why = `lies above ${bracketed(base)}, whose content changes`;
  const depth = (id: string): number => wayDown(view, id).length;
  return view.images
    .filter(({ kind, id }) => kind === 'image' && id !== base.id)
    .filter(({ id }) => {
      const ids = wayDown(view, id).map((one) => one.id);
      return ids.includes(base.id) && (isActive || !ids.includes(image.id));
    })
    .map(({ id }) => ({ id, why }))
    .sort((a, b) => depth(a.id) - depth(b.id));
}

function baseFirst(way: readonly Image[]): Image[] {
  return [...way].reverse();
}
