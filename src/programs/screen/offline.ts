import { probedWarning } from '../../block/format-guard.js';
import type { Node } from '../../block/node.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { Engine } from '../../monitor/engine.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { readAnswers } from '../../view/answers.js';
import { buildView } from '../../view/build.js';
import type { ClusterMap, MapExtent } from '../../view/cluster-map.js';
import { below, imageOf, type View } from '../../view/model.js';
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

async function readMap(top: Node, view: View): Promise<ClusterMap> {
  const layers: string[] = [];
  for (let image = imageOf(view, top.name); image; image = imageOf(view, below(image)))
    if (image.kind === 'image') layers.push(image.label);
  const extents: MapExtent[] = [];
  for await (const { start, length, depth, present, zero } of mapEntries(top, 0, top.lengthBytes))
    extents.push({ start, lengthBytes: length, ...(present && { layer: depth }), isZero: zero });
  return { diskBytes: top.lengthBytes, layers, extents };
}
