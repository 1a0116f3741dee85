import type { Chain, Image, View } from './model.js';

/** Where an image stands: its column counts from the base, its lane is its chain's. */
export interface Place {
  readonly column: number;
  readonly lane: number;
}

/**
 * Each chain has a lane of its own, base on the left, and images keep the place that the first chain gave them. So an
 * image that comes or goes moves none but those right of it, which a general layout of graphs does not promise.
 */
export function layOut(view: View): Map<string, Place> {
  const images = new Map(view.images.map((image) => [image.id, image]));
  const places = new Map<string, Place>();
  const lanes = new Map(view.chains.map((chain, lane) => [chain, lane]));
  const begun = new Set<Chain>();
  const placeChain = (chain: Chain): void => {
    // A server that tells of a circle must not make one here.
    if (begun.has(chain)) return;
    begun.add(chain);
    let column = firstColumn(chain, images, view, placeChain, places);
    for (const id of chain.images) {
      const known = places.get(id);
      if (known) column = Math.max(column, known.column + 1);
      else places.set(id, { column: column++, lane: lanes.get(chain) ?? 0 });
    }
  };
  for (const chain of view.chains) placeChain(chain);
  return places;
}

/** A group stands right of all its children's chains. */
function firstColumn(
  { images: ids }: Chain,
  images: ReadonlyMap<string, Image>,
  view: View,
  placeChain: (chain: Chain) => void,
  places: ReadonlyMap<string, Place>,
): number {
  const base = images.get(ids[0] ?? '');
  if (base?.kind !== 'group' || places.has(base.id)) return 0;
  const below = view.chains.filter(({ group, images: own }) => group === base.id && own[0] !== base.id);
  for (const chain of below) placeChain(chain);
  const ends = below.map((chain) => places.get(chain.images.at(-1) ?? '')?.column ?? 0);
  return Math.max(-1, ...ends) + 1;
}
