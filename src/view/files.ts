import { assemble } from './build.js';
import type { FileFacts, View } from './model.js';

/** The view with what the machine tells of files, by the images' ids. */
export function withFiles(view: View, facts: ReadonlyMap<string, FileFacts>): View {
  if (facts.size === 0) return view;
  const provided = view.chains.map((chain) => chain.provided);
  const images = view.images.map((image) => {
    const file = facts.get(image.id);
    return file ? { ...image, file } : image;
  });
  const made = assemble({ ...view, images });
  return {
    ...made,
    chains: made.chains.map((chain, i) => ({ ...chain, ...(provided[i] && { provided: provided[i] }) })),
  };
}
