import { useState } from 'preact/hooks';
import { imagesLeftOpen } from '../../view/left-open.js';
import { below, fileNameOf, type Image, imageOf, type View } from '../../view/model.js';
import { servesNbd } from '../../view/plan/exports.js';
import { isJobFilter } from '../../view/plan/points.js';
import type { Action } from '../../view/plan/types.js';
import { humanBytes } from '../../view/progress-meter.js';
import { fieldText } from './fields.js';
import { ageText, bracketed, partsOf, percentText, printable } from '../../view/words.js';
import type { DiskPoint } from './points.js';
import type { PointRequest } from './proposal.js';

/** What is known of an image, and what can be done with it. */
export function ImagePanel({ onClose, ...more }: ActionsProps & { onClose: () => void }) {
  const { view, image } = more;
  const shown = shownTexts(view, image);
  return (
    <section class="panel" aria-label={`image ${printable(image.label)}`}>
      <h2>
        {bracketed(image)}{' '}
        <button type="button" class="close" onClick={onClose} aria-label="close">
          ✕
        </button>
      </h2>
      <dl>
        <dt>node</dt>
        <dd>{printable(image.id)}</dd>
        <dt>file</dt>
        <dd class="long">{printable(fileNameOf(image))}</dd>
        <dt>format</dt>
        <dd>
          {printable(image.driver)}
          {image.isReadOnly ? ', read-only' : ''}
          {image.isEncrypted ? ', encrypted' : ''}
        </dd>
        <dt>disk</dt>
        <dd>{humanBytes(image.virtualBytes)}</dd>
        {image.allocatedBytes !== undefined && (
          <>
            <dt>occupies</dt>
            <dd>{humanBytes(image.allocatedBytes)}</dd>
          </>
        )}
        {image.kind === 'image' && shown.length > 0 && (
          <>
            <dt>the disk still shows</dt>
            <dd>{shown.join('; ')}</dd>
          </>
        )}
        {image.file && <FileRows file={image.file} />}
        {image.snapshotNames.length > 0 && (
          <>
            <dt>internal snapshots</dt>
            <dd>{image.snapshotNames.map(printable).join(', ')}</dd>
          </>
        )}
        {image.bitmaps.map(({ name, dirtyBytes, granularityBytes, isRecording, isPersistent }) => (
          <>
            <dt>bitmap</dt>
            <dd>
              {printable(name)}: {humanBytes(dirtyBytes)} in pieces of {humanBytes(granularityBytes)}
              {isRecording ? '' : ', not recording'}
              {isPersistent ? ', kept in the image' : ''}
            </dd>
          </>
        ))}
        {image.warnings.map((warning) => (
          <>
            <dt>warning</dt>
            <dd class="warning">{printable(warning)}</dd>
          </>
        ))}
      </dl>
      {!isJobFilter(image) && <Actions {...more} />}
    </section>
  );
}

/** What each disk that stands on the image shows of it, as far as maps have told; the same parts as in the picture. */
function shownTexts(view: View, image: Image): string[] {
  const chains = view.chains.filter(({ images }) => images.includes(image.id));
  return chains.flatMap((chain) => {
    const at = chain.images.indexOf(image.id);
    const bytes = chain.provided?.[at];
    const part = partsOf(chain)[at];
    if (bytes === undefined || !part) return [];
    const top = imageOf(view, chain.images.at(-1));
    const whose = chains.length > 1 && top ? `${bracketed(top)}: ` : '';
    return [`${whose}${humanBytes(bytes)} of it, ${percentText(part.share)} of its data`];
  });
}

function FileRows({ file }: { file: NonNullable<Image['file']> }) {
  const { ageSeconds, unchangedSeconds, freeBytes, fileSystemBytes } = file;
  return (
    <>
      <dt>age</dt>
      <dd>
        {ageSeconds !== undefined && `made ${ageText(ageSeconds)} ago, `}
        changed {ageText(unchangedSeconds)} ago
      </dd>
      <dt>its file system</dt>
      <dd>
        {humanBytes(freeBytes)} of {humanBytes(fileSystemBytes)} free
      </dd>
    </>
  );
}

interface ActionsProps {
  view: View;
  image: Image;
  /** Points in time that the image holds. */
  points: readonly DiskPoint[];
  isReadOnly: boolean;
  onPlan: (action: Action) => void;
  onPoint: (request: PointRequest) => void;
  onMap: () => void;
}

function Actions({ view, image, points, isReadOnly, onPlan, onPoint, onMap }: ActionsProps) {
  const [form, setForm] = useState<string>();
  const left = imagesLeftOpen(view);
  const isTop = image.overlays.every((above) => left.has(above) && !left.has(image.id));
  const layers = layersBelow(view, image);
  const id = image.id;
  const isImage = image.kind === 'image';
  const choices = isImage
    ? [
        ...(isTop ? ['snapshot'] : []),
        ...(layers.length > 0 ? ['stream', 'commit'] : []),
        ...(isTop ? ['mirror', 'backup', 'resize'] : ['delete']),
        'export',
      ]
    : ['export'];
  const choose = (choice: string): void => {
    if (choice === 'delete') onPlan({ kind: 'delete', image: id });
    else setForm(choice === form ? undefined : choice);
  };
  return (
    <>
      <div class="buttons">
        {choices.map((choice) => (
          <button
            key={choice}
            type="button"
            aria-expanded={choice === form}
            title={MEANINGS[choice]}
            onClick={() => choose(choice)}
          >
            {choice}
          </button>
        ))}
        {points.map(({ point: { name, id: pointId } }) => (
          <button
            key={pointId}
            type="button"
            title={`the disk shows again what it held at ${name}`}
            onClick={() => onPoint({ verb: 'revert', name })}
          >
            go back to {printable(name)}
          </button>
        ))}
        {isImage &&
          points.length === 0 &&
          disksAbove(view, image, left).map(({ top, label }, _i, { length }) => (
            <button
              key={top}
              type="button"
              title={MEANINGS['go back']}
              onClick={() => onPoint({ verb: 'revert', image: id, disk: top, label: bracketed(image) })}
            >
              go back to it{length > 1 && `, of ${printable(label)}`}
            </button>
          ))}
        {isImage && (
          <button type="button" title={MEANINGS['map']} onClick={onMap}>
            map
          </button>
        )}
      </div>
      {isReadOnly && (
        <p class="quiet">This page only looks (--read-only): plans are made, and none is run.</p>
      )}
      {form !== undefined && choices.includes(form) && (
        <ActionForm key={form} kind={form} image={image} layers={layers} view={view} onPlan={onPlan} />
      )}
    </>
  );
}

const MEANINGS: Readonly<Record<string, string>> = {
  snapshot: 'keep this moment: a new layer takes what is written from now on',
  stream: 'copy the data of layers below into this image',
  commit: 'copy the data of this image into one below',
  mirror: 'copy the whole disk, and go over to the copy',
  backup: 'copy the disk of this moment into a file',
  resize: 'make the disk longer or shorter',
  delete: 'forget this point in time',
  export: 'offer it over NBD',
  'go back': 'the disk shows again what this image holds; what was written since is left',
  map: 'which layer each part of the disk comes from',
};

/** Disks that have the image below their active one, and what each is called; `left` are open and of none. */
function disksAbove(
  view: View,
  image: Image,
  left: ReadonlySet<string>,
): Array<{ top: string; label: string }> {
  return view.chains.flatMap(({ images }) => {
    const top = images.findLast((id) => imageOf(view, id)?.kind === 'image' && !left.has(id));
    if (top === undefined || images.indexOf(image.id) < 0 || images.indexOf(image.id) >= images.indexOf(top))
      return [];
    const user = view.users.find(({ imageId }) => imageId !== undefined && images.includes(imageId));
    return [{ top, label: user?.label ?? imageOf(view, top)?.label ?? top }];
  });
}

function layersBelow(view: View, image: Image): Image[] {
  const layers: Image[] = [];
  for (
    let next = imageOf(view, below(image));
    next && !layers.includes(next);
    next = imageOf(view, below(next))
  )
    layers.push(next);
  return layers;
}

function ActionForm({
  kind,
  image,
  layers,
  view,
  onPlan,
}: {
  kind: string;
  image: Image;
  layers: readonly Image[];
  view: View;
  onPlan: (action: Action) => void;
}) {
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const data = new FormData(event.currentTarget as HTMLFormElement);
    const text = (name: string): string => fieldText(data, name);
    const action = actionOf(kind, image.id, text);
    if (action) onPlan(action);
  };
  const name = freshName(view);
  return (
    <form onSubmit={submit}>
      {['snapshot', 'mirror', 'backup'].includes(kind) && (
        <label>
          file{' '}
          <input name="file" required autocomplete="off" spellcheck={false} defaultValue={`${name}.qcow2`} />
        </label>
      )}
      {['snapshot', 'mirror'].includes(kind) && (
        <label>
          node name <input name="node" required autocomplete="off" spellcheck={false} defaultValue={name} />
        </label>
      )}
      {kind === 'stream' && (
        <label>
          keep below it{' '}
          <select name="base">
            <option value="">nothing</option>
            {layers.slice(1).map((one) => (
              <option key={one.id} value={one.id}>
                {bracketed(one)}
              </option>
            ))}
          </select>
        </label>
      )}
      {kind === 'commit' && (
        <label>
          into{' '}
          <select name="base">
            {layers
              .filter(({ kind: what }) => what === 'image')
              .map((one) => (
                <option key={one.id} value={one.id}>
                  {bracketed(one)}
                </option>
              ))}
          </select>
        </label>
      )}
      {kind === 'resize' && (
        <label>
          MiB{' '}
          <input
            name="size"
            type="number"
            min="1"
            required
            defaultValue={String(Math.ceil(image.virtualBytes / MiB))}
          />
        </label>
      )}
      {kind === 'export' && (
        <label>
          name{' '}
          <input name="name" required autocomplete="off" spellcheck={false} defaultValue={`export-${name}`} />
        </label>
      )}
      {kind === 'export' && !servesNbd(view) && (
        <label>
          unix socket to start an NBD server at (empty: one runs already){' '}
          <input name="file" autocomplete="off" spellcheck={false} defaultValue={`${name}.sock`} />
        </label>
      )}
      {kind === 'export' && (
        <label>
          <input name="writable" type="checkbox" /> for writing
        </label>
      )}
      <button type="submit" class="main">
        Plan
      </button>
    </form>
  );
}

const MiB = 1024 * 1024;

function actionOf(kind: string, image: string, text: (name: string) => string): Action | undefined {
  switch (kind) {
    case 'snapshot':
    case 'mirror':
      return { kind, image, file: text('file'), node: text('node') };
    case 'backup':
      return { kind, image, file: text('file') };
    case 'stream':
      return { kind, image, ...(text('base') !== '' && { base: text('base') }) };
    case 'commit':
      return { kind, image, base: text('base') };
    case 'resize':
      return { kind, image, bytes: Number(text('size')) * MiB };
    case 'export':
      return {
        ...{ kind, image, name: text('name'), isWritable: text('writable') === 'on' },
        ...(text('file') !== '' && { file: text('file') }),
      };
    default:
      return undefined;
  }
}

/** A letter as the document would take, or a number. */
function freshName(view: View): string {
  const taken = new Set(view.images.map(({ id }) => id));
  const letters = [...'ABCDEFGHIJKLMNOPQRSTUVWXYZ'].find(
    (letter) => !taken.has(letter) && !taken.has(`node-${letter}`),
  );
  const prefix = [...taken].some((id) => id.startsWith('node-')) ? 'node-' : '';
  return letters === undefined ? `layer${taken.size}` : `${prefix}${letters}`;
}
