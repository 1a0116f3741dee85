import { type Chain, fileNameOf, type Image, type View } from './model.js';

/** Chains of more images than that are folded, to the ends of them. */
const FOLDED_FROM = 16;
const KEPT = { base: 3, top: 6 };
/**
 * The view in which the middles of deep chains are one image each, that says how many they are. Kept are the ends, those of
 * `kept`, and images that somebody uses, or of which there is something to warn. `unfolded` are tops of chains that are
 * drawn whole.
 */
export function foldDeepChains(
  view: View,
  { unfolded, kept }: { unfolded: ReadonlySet<string>; kept: readonly (string | undefined)[] },
): View {
  const isDeep = ({ images }: Chain): boolean =>
    images.length > FOLDED_FROM && !unfolded.has(images.at(-1) ?? '');
  if (!view.chains.some(isDeep)) return view;
  const byId = new Map(view.images.map((image) => [image.id, image]));
  const used = new Set([...kept, ...view.users.map(({ imageId }) => imageId)]);
  const stays = (id: string): boolean => used.has(id) || (byId.get(id)?.warnings.length ?? 0) > 0;
  const shown = new Set<string>();
  const folds = new Map<string, string>();
  const made: Image[] = [];
  const chains = view.chains.map((chain) => {
    if (!isDeep(chain)) {
      for (const id of chain.images) shown.add(id);
      return chain;
    }
    const folded = foldChain(chain, stays, byId);
    for (const [id, fold] of folded.hidden) folds.set(id, fold);
    for (const id of folded.chain.images) if (byId.has(id)) shown.add(id);
    made.push(...folded.made);
    return folded.chain;
  });
  const images = view.images.filter(({ id }) => shown.has(id) || !folds.has(id));
  const told = (id: string): string => (shown.has(id) ? id : (folds.get(id) ?? id));
  return {
    ...view,
    chains,
    images: [
      ...images.map((image) => ({
        ...image,
        children: image.children.map(({ role, id }) => ({ role, id: told(id) })),
      })),
      ...made,
    ],
    jobs: view.jobs.map((job) => ({
      ...job,
      from: [...new Set(job.from.map(told))],
      ...(job.to !== undefined && { to: told(job.to) }),
    })),
  };
}

function foldChain(
  chain: Chain,
  stays: (id: string) => boolean,
  byId: ReadonlyMap<string, Image>,
): { chain: Chain; hidden: Map<string, string>; made: Image[] } {
  const { images: ids, shares, provided } = chain;
  const images: string[] = [];
  const parts: { shares: number[]; provided: number[] } = { shares: [], provided: [] };
  const hidden = new Map<string, string>();
  const made: Image[] = [];
  for (let i = 0; i < ids.length;) {
    let end = i;
    while (end >= KEPT.base && end < ids.length - KEPT.top && !stays(ids[end] ?? '')) end++;
    const count = Math.max(1, end - i);
    const run = ids.slice(i, i + count);
    const sum = (list: readonly number[] | undefined): number =>
      (list ?? []).slice(i, i + count).reduce((all, one) => all + one, 0);
    const [first = ''] = run;
    if (count === 1) images.push(first);
    else {
      const top = ids.at(-1) ?? '';
      const id = freeId(`fold:${top} ${first}`, byId);
      for (const one of run) hidden.set(one, id);
      made.push(foldOf({ id, top, base: ids[i - 1] }, run, byId));
      images.push(id);
    }
    parts.shares.push(sum(shares));
    parts.provided.push(sum(provided));
    i += count;
  }
  return {
    chain: { ...chain, images, shares: parts.shares, ...(provided && { provided: parts.provided }) },
    hidden,
    made,
  };
}

/** The same for the same images, so that nothing is drawn anew. */
function freeId(wanted: string, byId: ReadonlyMap<string, Image>): string {
  let id = wanted;
  while (byId.has(id)) id += '+';
  return id;
}

function foldOf(
  { id, top, base }: { id: string; top: string; base: string | undefined },
  run: readonly string[],
  byId: ReadonlyMap<string, Image>,
): Image {
  const highest = byId.get(run.at(-1) ?? '');
  const bytes = run.reduce((sum, one) => sum + (byId.get(one)?.allocatedBytes ?? 0), 0);
  return {
    ...{
      id,
      foldOf: top,
      label: `${run.length} more layers`,
      kind: 'filter',
      driver: 'press to see them',
      filename: '',
    },
    ...{ virtualBytes: highest?.virtualBytes ?? 0, allocatedBytes: bytes },
    ...{ isReadOnly: true, isCorrupt: false, isEncrypted: false, isImplicit: false },
    ...{ bitmaps: [], snapshotNames: [], overlays: [], warnings: [] },
    children: base === undefined ? [] : [{ role: 'backing', id: base }],
  };
}

/** The chains in which a name, a file or a user has that text. */
export function chainsWith(view: View, text: string): View {
  const wanted = text.trim().toLowerCase();
  if (wanted === '') return view;
  const has = (...texts: string[]): boolean => texts.some((one) => one.toLowerCase().includes(wanted));
  const found = new Set<string | undefined>([
    ...view.images.filter((image) => has(image.label, fileNameOf(image), image.id)).map(({ id }) => id),
    ...view.users.filter(({ label }) => has(label)).map(({ imageId }) => imageId),
  ]);
  const chains = view.chains.filter(({ images }) => images.some((id) => found.has(id)));
  const shown = new Set(chains.flatMap(({ images }) => images));
  return {
    ...view,
    chains,
    images: view.images.filter(({ id }) => shown.has(id)),
    users: view.users.filter(({ imageId }) => imageId !== undefined && shown.has(imageId)),
    jobs: view.jobs.filter(({ from, to }) => [...from, to ?? ''].some((id) => shown.has(id))),
  };
}
