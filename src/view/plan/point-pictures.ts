import { fileNameOf, type Image, imageOf, type View } from '../model.js';
import { planSnapshot } from './layers.js';
import { planDeletion, planReversal, withoutJobs } from './points.js';

/** A new image, as x-point-create and x-point-revert tell of it. */
export interface NewPointImage {
  /** The one that is active before. */
  readonly node: string;
  readonly 'new-node-name': string;
  readonly file: string;
}

/** The view once each disk has its new image: of a point that is made. Errors: as planSnapshot's. */
export function afterCreation(view: View, images: readonly NewPointImage[]): View {
  return images.reduce(
    (now, { node, file, 'new-node-name': name }) =>
      planSnapshot(now, { kind: 'snapshot', image: node, file, node: name }).after,
    view,
  );
}

/** The view once the images that hold a point are gone, by the ways that end `files` alone. Errors: as planDeletion's. */
export function afterDeletion(view: View, nodes: readonly string[], files: readonly string[]): View {
  return nodes.reduce((now, node) => {
    const { ways } = planDeletion(now, node);
    const endsOnlyThose = (ids: readonly string[]): boolean =>
      ids.every((id) => files.some((file) => isSameFile(file, imageOf(now, id))));
    return (ways.find(({ ends }) => endsOnlyThose(ends)) ?? ways[0])?.plan.after ?? now;
  }, withoutJobs(view));
}

/** Servers tell whole paths of files that their images may name from a folder. */
function isSameFile(path: string, image: Image | undefined): boolean {
  const filename = image && fileNameOf(image);
  return filename !== undefined && (path === filename || path.endsWith(`/${filename.replace(/^\.\//, '')}`));
}

/** The view once disks are back at a point; `holders` hold it, in the order of `images`. Errors: as planReversal's. */
export function afterReversal(
  view: View,
  images: readonly NewPointImage[],
  holders: readonly string[],
): View {
  return images.reduce(
    (now, { node, file, 'new-node-name': name }, i) =>
      planReversal(now, { top: node, id: holders[i] ?? '', node: name, file }).after,
    view,
  );
}
