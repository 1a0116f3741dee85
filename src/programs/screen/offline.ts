import { probedWarning } from '../../block/format-guard.js';
import { BlockError } from '../../base/error.js';
import type { Node } from '../../block/node.js';
import { parseJsonName } from '../../block/node-plan.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { Engine } from '../../monitor/engine.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { readAnswers } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import type { ClusterMap, MapExtent } from '../../view/cluster-map.js';
import { below, type Image, imageOf, layersBelow, type View } from '../../view/model.js';
import { bracketed } from '../../view/words.js';
import { mapEntries } from '../img/map.js';

/** An image and its backing files as a server would tell of them that has them open. */
export interface OfflineLook {
  readonly view: View;
  /** Reads the whole block status. Errors: those of reading metadata. */
  readMap(): Promise<ClusterMap>;
}

/**
 * Opens an image for reading beside whoever has it open, lets `look` see it, and closes it. What a running program has
 * not written back yet is not seen. Errors: those of opening.
 */
export async function withImage<T>(
  host: Host,
  filename: string,
  format: string | undefined,
  look: (image: OfflineLook) => Promise<T>,
): Promise<T> {
  const engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
  engine.opener.onProbed = (name, probed, readOnly) =>
    void process.stderr.write(probedWarning(name, probed, readOnly));
  try {
    const node = await engine.opener.openImage(filename, format, { readOnly: true, forceShare: true });
    const execute = (command: string, args: JsonObject = {}): Promise<JsonValue> =>
      engine.hub.execute(command, args) as Promise<JsonValue>;
    const view = buildView(await readAnswers(execute));
    return await look({ view, readMap: () => readMap(node, view) });
  } finally {
    await engine.close();
  }
}

/** Whose clusters an image's disk shows, of its files, as a server has them open; layers are called as the server does. */
export async function readMapOf(
  host: Host,
  view: View,
  id: string,
  pathOf: (image: Image) => string,
): Promise<ClusterMap> {
  const labels = layersBelow(view, id).map(({ label }) => label);
  const name = nameAsOpened(view, id, pathOf);
  const map = await withImage(host, name, imageOf(view, id)?.driver, (image) => image.readMap());
  return labels.length === map.layers.length ? { ...map, layers: labels } : map;
}

/**
 * The name of an image as a server has it open, with what is below it: its path, or, where its chain is not the one that its
 * files name, or is named in another way, all of it (`json:`). `pathOf` says where a file lies. Errors: unsupported, of what is
 * in no file; those of `pathOf`.
 */
function nameAsOpened(view: View, id: string, pathOf: (image: Image) => string): string {
  const layers = layersBelow(view, id);
  const [top] = layers;
  if (!top) return id;
  if (!layers.some(({ filename }) => filename.startsWith('json:'))) return pathOf(top);
  const options = layers.reduceRight<JsonObject | undefined>((backing, layer) => {
    const takesBacking = allDrivers.find(({ name }) => name === layer.driver)?.options.backing === true;
    const file = { driver: layer.storage?.driver ?? 'file', filename: pathOf(layer) };
    if (layer.kind !== 'image' || !FILE_DRIVERS.has(file.driver))
      throw new BlockError('unsupported', `${bracketed(layer)} is in no file of this machine`);
    return {
      ...ownOptions(layer),
      driver: layer.driver,
      file,
      ...(takesBacking && { backing: backing ?? null }),
    };
  }, undefined);
  return `json:${JSON.stringify(options)}`;
}

const FILE_DRIVERS: ReadonlySet<string> = new Set(['file', 'host_device', 'host_cdrom']);

/** What an image's name says of how it is opened, but for other nodes; nothing, where the name is cut. */
function ownOptions({ filename }: Image): JsonObject {
  if (!filename.startsWith('json:')) return {};
  try {
    const options = Object.entries(parseJsonName(filename));
    return Object.fromEntries(options.filter(([, value]) => typeof value !== 'object'));
  } catch {
    return {};
  }
}

async function readMap(top: Node, view: View): Promise<ClusterMap> {
  const layers: string[] = [];
  for (let image = imageOf(view, top.name); image; image = imageOf(view, below(image)))
    if (image.kind === 'image') layers.push(image.label);
  const extents: MapExtent[] = [];
  for await (const { start, length, depth, present, zero } of mapEntries(top, 0, top.lengthBytes))
    extents.push({ start, lengthBytes: length, ...(present && { layer: depth }), isZero: zero });
  return { diskBytes: top.lengthBytes, layers, extents };
}
