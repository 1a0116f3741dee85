import { assemble } from '../build.js';
import { below, type Image, imageOf, type User, type View } from '../model.js';

/** A view as it would be, made step by step from one that is. */
export class Change {
  readonly #view: View;
  readonly #images: Map<string, Image>;
  #users: readonly User[];

  constructor(view: View) {
    this.#view = view;
    this.#images = new Map(view.images.map((image) => [image.id, image]));
    this.#users = view.users;
  }

  add(image: Image): void {
    this.#images.set(image.id, image);
  }

  update(id: string, changes: Partial<Image>): void {
    const image = this.#images.get(id);
    if (image) this.#images.set(id, { ...image, ...changes });
  }

  /** Another image below it, or none. */
  rebase(id: string, base: string | undefined): void {
    const image = this.#images.get(id);
    if (!image) return;
    const others = image.children.slice(1);
    const role = image.children[0]?.role ?? 'backing';
    this.update(id, { children: [...(base === undefined ? [] : [{ role, id: base }]), ...others] });
  }

  /** Users, and images above, of one go over to another. */
  replace(from: string, to: string): void {
    this.#users = this.#users.map((user) => (user.imageId === from ? { ...user, imageId: to } : user));
    for (const image of this.#images.values())
      if (image.id !== to && image.children.some(({ id }) => id === from))
        this.update(image.id, {
          children: image.children.map((child) => (child.id === from ? { ...child, id: to } : child)),
        });
  }

  addUser(user: User): void {
    this.#users = [...this.#users, user];
  }

  removeUser(id: string): void {
    this.#users = this.#users.filter((user) => user.id !== id);
  }

  /** Takes away those of `ids` that nobody needs any more; their files stay. */
  drop(ids: readonly string[]): void {
    for (const id of ids) {
      const isUsed = this.#users.some((user) => user.imageId === id);
      const isShown = [...this.#images.values()].some(({ children }) =>
        children.some((child) => child.id === id),
      );
      if (!isUsed && !isShown) this.#images.delete(id);
    }
  }

  result(): View {
    const { server, jobs } = this.#view;
    return assemble({ server, images: [...this.#images.values()], users: this.#users, jobs });
  }
}

/** From an image down to its base, itself first; what does not end is cut. */
export function wayDown(view: View, id: string): Image[] {
  const way = new Set<Image>();
  for (let image = imageOf(view, id); image && !way.has(image);) {
    way.add(image);
    image = imageOf(view, below(image));
  }
  return [...way];
}

/** The last of its chain, filters included. With several overlays there is no one such. */
export function topOf(view: View, id: string): Image | undefined {
  const chains = view.chains.filter(({ images }) => images.includes(id));
  return chains.length === 1 ? imageOf(view, chains[0]?.images.at(-1)) : undefined;
}

/** What images occupy at most: a group what its children do, and no more than its disk. */
export function allocatedOf(view: View, images: readonly Image[], groups = new Set<Image>()): number {
  return images.reduce((sum, image) => sum + occupiedBy(view, image, groups), 0);
}

function occupiedBy(view: View, image: Image, groups: Set<Image>): number {
  if (image.kind !== 'group') return image.allocatedBytes ?? 0;
  // A server that tells of a circle must not make one here.
  if (groups.has(image)) return 0;
  groups.add(image);
  const all = image.children.reduce((sum, { id }) => sum + allocatedOf(view, wayDown(view, id), groups), 0);
  return Math.min(all, image.virtualBytes);
}

/** Filters hold nothing. */
export function layersOf(way: readonly Image[]): number {
  return way.filter(({ kind }) => kind !== 'filter').length;
}
