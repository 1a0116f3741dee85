import { BlockError } from '../../base/error.js';
import { assemble } from '../build.js';
import { imagesLeftOpen } from '../left-open.js';
import { byId, type Image, imageOf, pastFilters, type User, type View } from '../model.js';
import { humanBytes } from '../progress-meter.js';
import { bracketed, userText } from '../words.js';
import { allocatedOf, Change, topOf, wayDown } from './change.js';
import { areFree, filtersAbove, isNewFile, isNewNode, listed, refuse, theImage } from './checks.js';
import { overlayOf, planCommit, planStream } from './layers.js';
import type { Action, InvalidImage, Plan } from './types.js';

/** One of the two ways to do without a point in time: it flows into the image above, or that image into it. */
export interface DeletionWay {
  readonly kind: 'stream' | 'commit';
  readonly plan: Plan;
  /** Images that the chain does without afterwards. */
  readonly ends: readonly string[];
  /** Images that stay and show what is not theirs. */
  readonly invalid: readonly InvalidImage[];
}

/** Both ways, the cheaper one first; those that cannot be had say why. */
export interface Deletion {
  readonly image: Image;
  /** Who reads the point, past the disk. */
  readonly users: readonly User[];
  readonly ways: readonly DeletionWay[];
  readonly refused: ReadonlyArray<{ readonly kind: DeletionWay['kind']; readonly why: string }>;
}

/**
 * How a point in time can be deleted, which is what an image that is not written any more holds. Errors: invalid, when it
 * is no such image, or several stand on it.
 */
export function planDeletion(view: View, id: string): Deletion {
  const image = theImage(view, id);
  const overlay = onlyOverlay(view, image);
  const users = view.users.filter(({ imageId }) => imageId === image.id);
  const base = image.children[0]?.id;
  const refused: Array<Deletion['refused'][number]> = [];
  const ways: DeletionWay[] = [];
  const consider = (kind: DeletionWay['kind'], planOf: () => Plan): void => {
    try {
      ways.push(wayOf(view, kind, planOf()));
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      refused.push({ kind, why: error.message });
    }
  };
  consider('stream', () =>
    planStream(view, { kind: 'stream', image: overlay.id, ...(base !== undefined && { base }) }),
  );
  consider('commit', () => {
    if (users.length > 0) refuse(`${users.map(userText).join(', ')} reads ${bracketed(image)}`);
    if (!topOf(view, overlay.id)) refuse(`${bracketed(overlay)} is the backing file of several images`);
    return planCommit(view, { kind: 'commit', image: overlay.id, base: image.id });
  });
  // As cheap, the disk's own image stays where it is.
  const costOf = ({ plan, kind }: DeletionWay): number => plan.bytesAtMost + (kind === 'commit' ? 0.5 : 0);
  return { image, users, ways: ways.sort((a, b) => costOf(a) - costOf(b)), refused };
}

/** The cheapest way. Errors: invalid, with what is in the way of the first. */
export function cheapestDeletion(view: View, id: string): DeletionWay {
  const { ways, refused } = planDeletion(view, id);
  return ways[0] ?? refuse(refused[0]?.why ?? 'there is no way');
}

/** The view as it is when jobs that are under way are over, but for what they do: without them and their filters. */
export function withoutJobs(view: View): View {
  if (view.jobs.length === 0) return view;
  const shown = (id: string): string => {
    const way = [...pastFilters(id, byId(view.images))];
    return way.find((one) => !isJobFilter(imageOf(view, one))) ?? id;
  };
  const images = view.images
    .filter((image) => !isJobFilter(image))
    .map((image) => ({
      ...image,
      children: image.children.map(({ role, id }) => ({ role, id: shown(id) })),
    }));
  return assemble({
    server: view.server,
    images,
    users: view.users.map((user) => ({
      ...user,
      ...(user.imageId !== undefined && { imageId: shown(user.imageId) }),
    })),
    jobs: [],
  });
}

/** The view without images that are left open above disks. */
export function withoutLeftOpen(view: View): View {
  const left = imagesLeftOpen(view);
  if (left.size === 0) return view;
  return assemble({ ...view, images: view.images.filter(({ id }) => !left.has(id)) });
}

/** A filter that a job has inserted for as long as it runs. */
export function isJobFilter(image: Image | undefined): boolean {
  return (
    image?.kind === 'filter' &&
    image.isImplicit &&
    ['commit_top', 'mirror_top', 'copy-on-read', 'copy-before-write'].includes(image.driver)
  );
}

/** By the way that copies less: into the image above, or of the image above into it. */
export function planDelete(view: View, action: Extract<Action, { kind: 'delete' }>): Plan {
  areFree(view, [theImage(view, action.image)]);
  const { plan } = cheapestDeletion(view, action.image);
  const gone = `The disk cannot be taken back any more to what ${bracketed(theImage(view, action.image))} holds.`;
  return { ...plan, action, words: [gone, ...plan.words] };
}

function onlyOverlay(view: View, image: Image): Image {
  const [overlayId, ...more] = image.overlays;
  const overlay = imageOf(view, overlayId);
  if (!overlay) refuse(`${bracketed(image)} is what the disk holds now, and no point in time`);
  if (more.length > 0) refuse(`${bracketed(image)} is needed by ${image.overlays.length} images`);
  const [, between] = wayDown(view, overlay.id);
  if (between && between.id !== image.id)
    refuse(`above ${bracketed(image)} is ${bracketed(between)}, which no job can pass`);
  return overlay;
}

function wayOf(view: View, kind: DeletionWay['kind'], plan: Plan): DeletionWay {
  const chained = new Set(plan.after.chains.flatMap(({ images }) => images));
  const wasChained = new Set(view.chains.flatMap(({ images }) => images));
  const ends = view.images
    .filter(({ id, kind: what }) => what === 'image' && wasChained.has(id) && !chained.has(id))
    .map(({ id }) => id);
  return { kind, plan, ends, invalid: plan.invalid.filter(({ id }) => !ends.includes(id)) };
}

/** Going back to a point in time: a new image above it takes the disk's place. */
export interface Reversal {
  readonly image: Image;
  /** What the disk holds now. */
  readonly top: Image;
  /** Between that and its users, the next one first. */
  readonly filters: readonly Image[];
  /** Images that the disk does without afterwards, base first: what was written since, and later points. */
  readonly ends: readonly string[];
  /** Who uses the disk, and goes over to the new image. */
  readonly users: readonly User[];
  readonly node: string;
  readonly file: string;
  readonly words: readonly string[];
  readonly after: View;
}

/**
 * How the disk whose active image is `top` goes back to the point that `id` holds. Errors: invalid, when it is not below,
 * or an image on the way belongs to others too.
 */
export function planReversal(
  view: View,
  { top: topId, id, node, file }: { top: string; id: string; node: string; file: string },
): Reversal {
  const image = theImage(view, id);
  const top = theImage(view, topId);
  const way = wayDown(view, top.id);
  const end = way.indexOf(image);
  if (end === 0) refuse(`${bracketed(image)} is what the disk shows now`);
  if (end < 0) refuse(`${bracketed(image)} is not below ${bracketed(top)}`);
  const left = way.slice(0, end);
  for (const job of view.jobs)
    if (left.some(({ id: one }) => job.to === one || job.from.includes(one)))
      refuse(`job ${job.id} works on the disk: wait for its end`);
  if (top.overlays.length > 0) refuse(`${bracketed(top)} is not on top of its chain`);
  isNewNode(view, node);
  isNewFile(view, file);
  const change = new Change(view);
  change.replace(top.id, node);
  change.add(overlayOf(image, { node, file }));
  change.drop(left.map((one) => one.id));
  return {
    ...{ image, top, filters: filtersAbove(view, top), node, file, after: change.result() },
    ends: left.map((one) => one.id).reverse(),
    users: view.users.filter(({ imageId }) => imageId === top.id),
    words: [
      `The disk shows again what ${bracketed(image)} holds; a new image [${node}] above it takes what is written.`,
      `${listed([...left].reverse())}, ${humanBytes(allocatedOf(view, left))}, are left, with what was written since; their files stay.`,
    ],
  };
}
