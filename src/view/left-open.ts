import { byId, type Image, imageOf, pastFilters, type View } from './model.js';

/**
 * Images that are above a disk's active one and not of it: who commits one that was opened by a name of its own leaves it
 * open, on the image that its users have gone down to. Nobody uses it, and below it somebody writes.
 */
export function imagesLeftOpen(view: View): ReadonlySet<string> {
  const { users, jobs, chains } = view;
  const used = new Set(
    users.flatMap(({ imageId }) =>
      imageId === undefined ? [] : [...pastFilters(imageId, byId(view.images))],
    ),
  );
  const worked = new Set(jobs.flatMap(({ from, to }) => [...from, to]));
  const left = new Set<string>();
  for (const { images, group } of chains) {
    const way = [...images].reverse().flatMap((id) => imageOf(view, id) ?? []);
    // Of jobs it is not told whose active image they work below.
    const count = way.findIndex(({ id }) => used.has(id) || worked.has(id));
    if (count < 1 || group !== undefined || !used.has(way[count]?.id ?? '')) continue;
    const active = way.slice(count).find(({ kind }) => kind !== 'filter');
    if (active?.kind !== 'image' || active.isReadOnly) continue;
    for (const { id } of way.slice(0, count)) left.add(id);
  }
  // What somebody uses may stand on one by another way.
  const shown = view.images.filter(({ id }) => !left.has(id)).flatMap(({ children }) => children);
  for (const { id } of shown) if (left.delete(id)) shown.push(...(imageOf(view, id)?.children ?? []));
  return left;
}

/** Those of `left` (see imagesLeftOpen) that are above an image, in the order in which they can be closed. */
export function leftOpenAbove(view: View, id: string, left: ReadonlySet<string>): Image[] {
  if (left.size === 0) return [];
  const above = view.chains
    .filter(({ images }) => images.includes(id))
    .flatMap(({ images }) => [...images].reverse().filter((one) => left.has(one)));
  // One of several chains comes after all that is above it.
  const inOrder = [...new Set(above.reverse())].reverse();
  return inOrder.flatMap((one) => imageOf(view, one) ?? []);
}
