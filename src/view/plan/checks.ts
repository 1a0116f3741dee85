import { BlockError } from '../../base/error.js';
import { below, fileNameOf, type Image, imageOf, type View } from '../model.js';
import { bracketed, printable } from '../words.js';
import type { Plan } from './types.js';

export function refuse(message: string): never {
  throw new BlockError('invalid', message);
}

/** Errors: invalid where there is no such image, or it is a filter or a group. */
export function theImage(view: View, id: string): Image {
  const image = imageOf(view, id);
  if (!image) refuse(`there is no image '${printable(id)}'`);
  if (image.kind !== 'image') refuse(`${bracketed(image)} is no image, but a ${image.kind} over others`);
  return image;
}

/** Errors: invalid, naming the job that has one of the images. */
export function areFree(view: View, images: readonly Image[]): void {
  for (const image of images)
    for (const job of view.jobs)
      if (job.to === image.id || job.from.includes(image.id))
        refuse(`job ${printable(job.id)} works on ${bracketed(image)}: wait for its end`);
}

/** Filters that nothing else has between the image and its users, the next one first. */
export function filtersAbove(view: View, image: Image): Image[] {
  const filters: Image[] = [];
  for (let at = image; ;) {
    const { id: own } = at;
    const [parent, ...more] = parentsOf(view, own);
    const isFilter = more.length === 0 && parent?.kind === 'filter' && below(parent) === own;
    if (!parent || !isFilter || filters.includes(parent)) return filters;
    filters.push(parent);
    at = parent;
  }
}

function parentsOf({ images }: View, id: string): Image[] {
  return images.filter(({ children }) => children.some((child) => child.id === id));
}

/**
 * What commands about a whole disk take for its name: the image, or the last of the filters above it, without which it
 * would lose them. Errors: invalid, where the image is a part of something else, of which servers take none.
 */
export function diskOf(view: View, image: Image): Image {
  const disk = filtersAbove(view, image).at(-1) ?? image;
  const parents = parentsOf(view, disk.id);
  if (parents.length > 0)
    refuse(`${bracketed(disk)} is a part of ${listed(parents)}: servers do that with whole disks only`);
  return disk;
}

/** Errors: invalid where nobody would go over to a new image: the server then forgets that at once. */
export function isUsed({ users, images }: View, image: Image): void {
  const isShown = images.some(({ children }) => children.some(({ id }) => id === image.id));
  if (!isShown && !users.some(({ imageId }) => imageId === image.id))
    refuse(
      `nobody uses ${bracketed(image)}, so nobody would go over to a new image: export it first, or back it up`,
    );
}

/** Errors: invalid for what is no name of a node. */
export function isNewNode(view: View, name: string): void {
  if (!/^[A-Za-z][A-Za-z0-9_.-]{0,30}$/.test(name))
    refuse(
      `'${printable(name)}' is no name for a node: a letter, then letters, digits, '_', '.' or '-', 31 at most`,
    );
  if (imageOf(view, name) || view.images.some(({ storage }) => storage?.id === name))
    refuse(`there is a node '${name}' already`);
}

/** Errors: invalid for what cannot be a file's name, or is that of an image that is open. */
export function isNewFile(view: View, file: string): void {
  if (file === '' || file.includes('\0')) refuse('a file needs a name');
  if (view.images.some((image) => fileNameOf(image) === file))
    refuse(`'${printable(file)}' is an image of this server`);
}

/** A name that no job has, or had whose end somebody may still want to undo. */
export function newJobId({ jobs, pastJobs = [] }: View, kind: string): string {
  const taken = new Set([...jobs.map(({ id }) => id), ...pastJobs]);
  for (let number = 0; ; number++) if (!taken.has(`${kind}${number}`)) return `${kind}${number}`;
}

/** Of a plan that starts a job, which takes it back when it is cancelled. */
export function startsJob(jobId: string): Required<Pick<Plan, 'jobId' | 'takenBackBy'>> {
  return { jobId, takenBackBy: { kind: 'job', job: jobId, verb: 'cancel' } };
}

/** `[A], [B] and [C]`. */
export function listed(images: readonly Image[]): string {
  const names = images.map(bracketed);
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1) ?? ''}`;
}
