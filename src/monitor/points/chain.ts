import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import { hasProtocol } from '../../block/filename.js';
import { parseJsonName } from '../../block/node-plan.js';
import type { Host, HostStat } from '../../host/host.js';
import { isJsonObject } from '../../schema/types.js';
import { fileNameOf, type Image, imageOf, type View } from '../../view/model.js';
import { wayDown } from '../../view/plan/change.js';
import type { PointServer } from './server.js';
import { followed } from './signpost.js';
import { readPointFile, type PointFile, type PointFileContent, absoluteFrom, SUFFIX } from './point-file.js';

/** Most points files of a folder that are looked at. */
const MAX_LOOKED_FILES = 1000;

/** An image of a chain, and its file as it lies there now. */
export interface Layer {
  readonly image: Image;
  readonly path: string;
  readonly identity: string;
  /** See HostStat.bornMs. */
  readonly born?: string;
  readonly sizeBytes: number;
  readonly modified: string;
}

/** The layers of the disk whose active image is `top`, top first. Errors: invalid; unsupported without files. */
export async function layersOf(
  { host, folder }: Pick<PointServer, 'host' | 'folder'>,
  view: View,
  top: string,
): Promise<Layer[]> {
  const image = imageOf(view, top);
  if (!image) throw new BlockError('not-found', `there is no image '${top}'`);
  const [above] = image.overlays;
  if (above !== undefined)
    throw new BlockError('invalid', `'${top}' is the backing file of '${above}', and no disk`);
  const layers: Layer[] = [];
  for (const at of wayDown(view, top)) if (at.kind === 'image') layers.push(await layerOf(host, at, folder));
  return layers;
}

async function layerOf(host: Host, image: Image, folder: string | undefined): Promise<Layer> {
  const name = fileNamed(image.filename) ?? fileNamed(fileNameOf(image));
  if (name === undefined)
    throw new BlockError('unsupported', `points in time need images in files, and '${image.id}' is in none`);
  if (!posix.isAbsolute(name) && folder === undefined) {
    const hint = 'Say from where the server sees it: --folder FOLDER';
    throw new BlockError('invalid', `image '${image.id}' has the relative name '${name}'`, { hint });
  }
  const path = posix.resolve(folder ?? '/', name);
  const stat = await host.files.stat(path);
  if (!stat) throw new BlockError('not-found', `'${path}', the file of image '${image.id}', is not there`);
  return { image, path, ...factsOf(stat) };
}

/** The path in an image's name; of a `json:` name, that of the file which its bytes are in. */
export function fileNamed(filename: string): string | undefined {
  if (!filename.startsWith('json:')) {
    const path = filename.replace(/^file:/, '');
    return path === '' || hasProtocol(path) ? undefined : path;
  }
  try {
    const { file } = parseJsonName(filename);
    const { filename: path } = isJsonObject(file) ? file : {};
    return typeof path === 'string' && !hasProtocol(path) ? path : undefined;
  } catch {
    return undefined;
  }
}

/** Whether a name alone opens the same: where it says more than file and format, that would be forgotten. */
export function isPlainName(filename: string): boolean {
  if (fileNamed(filename) === undefined) return false;
  if (!filename.startsWith('json:')) return true;
  try {
    const { file, ...more } = parseJsonName(filename);
    if (!isJsonObject(file)) return false;
    const isOnly = (object: object, names: readonly string[]): boolean =>
      Object.keys(object).every((name) => names.includes(name));
    return isOnly(file, ['driver', 'filename']) && isOnly(more, ['driver', 'backing']);
  } catch {
    return false;
  }
}

export function factsOf({
  identity,
  sizeBytes,
  modifiedMs,
  bornMs,
}: HostStat): Omit<Layer, 'image' | 'path'> {
  return {
    ...{ identity, sizeBytes, modified: String(modifiedMs) },
    ...(bornMs !== undefined && { born: String(bornMs) }),
  };
}

type FileFacts = Readonly<Partial<Pick<Layer, 'identity' | 'born'>>>;

/** Whether both are of one file: what is gone may have left its identity to another one. */
export function isSameFile(a: FileFacts, b: FileFacts): boolean {
  const isOther = a.born !== undefined && b.born !== undefined && a.born !== b.born;
  return a.identity !== undefined && a.identity === b.identity && !isOther;
}

/** The layer that a file of a points file is: by its path, or by the very file where it was renamed. */
export function findLayer(
  layers: readonly Layer[],
  { path, content }: Pick<PointFile, 'path' | 'content'>,
  file: string,
): Layer | undefined {
  const whole = absoluteFrom(path, file);
  const mark = content.images.find((one) => one.file === file);
  return (
    layers.find((layer) => layer.path === whole) ??
    layers.find((layer) => mark !== undefined && isSameFile(layer, mark))
  );
}

/**
 * The points file of a disk, looked for beside its images: the one whose active image is on top; else the one whose
 * active image is below (another program made a layer), or that knows the top as a layer (the active one was committed by
 * another program, or is not what was opened). Files that are damaged are no disk's, and told by their names.
 */
export async function findPointFile(
  host: Host,
  layers: readonly Layer[],
  onDamaged: (error: BlockError) => void = () => undefined,
): Promise<PointFile | undefined> {
  let second: PointFile | undefined;
  const seen = new Set<string>();
  for (const folder of new Set(layers.map(({ path }) => posix.dirname(path))))
    for await (const file of pointFilesIn(host, folder, onDamaged)) {
      if (seen.has(file.path)) continue;
      seen.add(file.path);
      const [top] = layers;
      const { content } = file;
      const isTop = (name: string): boolean =>
        top !== undefined && findLayer([top], file, name) !== undefined;
      if (isTop(content.active) || (content.pending && isTop(content.pending.overlay))) return file;
      if (findLayer(layers, file, content.active) || knownFiles(content).some(isTop)) second ??= file;
    }
  return second;
}

function knownFiles({ images, points, left = [] }: PointFileContent): string[] {
  return [...images.map(({ file }) => file), ...points.map(({ image }) => image), ...left];
}

async function* pointFilesIn(
  host: Host,
  folder: string,
  onDamaged: (error: BlockError) => void,
): AsyncGenerator<PointFile> {
  const names = (await host.files.list(folder)).filter((name) => name.endsWith(SUFFIX)).sort();
  if (names.length > MAX_LOOKED_FILES)
    throw new BlockError('limit', `'${folder}' has ${names.length} points files: too many to look at`);
  for (const name of names) {
    const path = posix.join(folder, name);
    const stat = await host.files.stat(path).catch(() => undefined);
    if (!stat || stat.isDirectory || stat.isBlockDevice || stat.isSpecial !== 'no') continue;
    try {
      const file = await followed(host, await readPointFile(host, path));
      if (file) yield file;
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      onDamaged(error);
    }
  }
}
