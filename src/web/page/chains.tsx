import { useState } from 'preact/hooks';
import { chainsWith, foldDeepChains } from '../../view/fold.js';
import { fileNameOf, imageOf, type View } from '../../view/model.js';
import { Picture } from './picture.js';

/** With more images than that, one looks for those that one wants. */
const MANY_IMAGES = 24;

/** The chains; deep ones folded until somebody wants them whole. */
export function Chains({
  view,
  chosen,
  onChoose,
}: {
  view: View;
  chosen: string | undefined;
  onChoose: (id: string) => void;
}) {
  const [unfolded, setUnfolded] = useState<ReadonlySet<string>>(new Set());
  const [wanted, setWanted] = useState('');
  const found = chainsWith(view, wanted);
  const isFound = (image: View['images'][number]): boolean =>
    [image.label, fileNameOf(image)].some((text) => text.toLowerCase().includes(wanted.trim().toLowerCase()));
  // What was looked for is not hidden in a fold.
  const matches = wanted.trim() === '' ? [] : found.images.filter(isFound).map(({ id }) => id);
  const drawn = foldDeepChains(found, { unfolded, kept: [chosen, ...matches.slice(0, MANY_IMAGES)] });
  const choose = (id: string): void => {
    const top = imageOf(drawn, id)?.foldOf;
    if (top !== undefined) setUnfolded(new Set([...unfolded, top]));
    else onChoose(id);
  };
  return (
    <>
      {(view.images.length > MANY_IMAGES || unfolded.size > 0) && (
        <div class="buttons">
          <label>
            find{' '}
            <input
              type="search"
              name="find"
              value={wanted}
              placeholder="disk, image or file"
              onInput={(event) => setWanted(event.currentTarget.value)}
            />
          </label>
          <span class="quiet" role="status">
            {found.chains.length} of {view.chains.length} disks, {view.images.length} images
          </span>
          {unfolded.size > 0 && (
            <button type="button" onClick={() => setUnfolded(new Set())}>
              fold deep chains
            </button>
          )}
        </div>
      )}
      <Picture view={drawn} chosen={chosen} onChoose={choose} />
    </>
  );
}
