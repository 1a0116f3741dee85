import type { JsonValue } from '../schema/types.js';
import { type Execute, numberOf, objectOf, objectsOf, textOf } from './answers.js';
import { bytesOfLayers, type ClusterMap, type MapExtent } from './cluster-map.js';
import { imageOf, layersBelow, type View } from './model.js';

/** Some 250,000 stretches: more than a picture has dots, and what a page can take. */
const MOST_ANSWERS = 64;

/** Asks a livedisk for its map of an image's disk (x-query-map). Undefined: it has none to tell, or one that is too long. */
export async function readLiveMap(execute: Execute, view: View, id: string): Promise<ClusterMap | undefined> {
  const extents: MapExtent[] = [];
  let start = 0;
  for (let asked = 0; asked < MOST_ANSWERS; asked++) {
    const answer = objectOf(await orNothing(execute('x-query-map', { node: id, start })));
    const names = answer['layers'];
    if (!Array.isArray(names)) return undefined;
    for (const extent of objectsOf(answer['extents'])) {
      const layer = numberOf(extent['layer']);
      extents.push({
        start: numberOf(extent['start']) ?? 0,
        lengthBytes: numberOf(extent['length']) ?? 0,
        ...(layer !== undefined && { layer }),
        isZero: extent['zero'] === true,
      });
    }
    const next = numberOf(answer['next']);
    if (next === undefined) {
      const labels = names.map((name) => {
        const text = textOf(name) ?? '';
        return imageOf(view, text)?.label ?? text;
      });
      return { diskBytes: numberOf(answer['size']) ?? 0, layers: labels, extents };
    }
    if (next <= start) return undefined;
    start = next;
  }
  return undefined;
}

async function orNothing(answer: Promise<JsonValue>): Promise<JsonValue> {
  try {
    return await answer;
  } catch (error) {
    if ((error as { errorClass?: unknown }).errorClass === 'CommandNotFound') return {};
    throw error;
  }
}

/** The view in which the chain of that image says what each of its images provides. */
export function withMapOf(view: View, id: string, map: ClusterMap): View {
  const layers = layersBelow(view, id);
  if (layers.length !== map.layers.length) return view;
  const bytes = bytesOfLayers(map);
  const byId = new Map(layers.map((layer, i) => [layer.id, bytes[i] ?? 0]));
  const chains = view.chains.map((chain) => {
    const top = chain.images.findLast((one) => imageOf(view, one)?.kind !== 'filter');
    return top === id ? { ...chain, provided: chain.images.map((one) => byId.get(one) ?? 0) } : chain;
  });
  return { ...view, chains };
}
