import { BlockError } from '../../base/error.js';
import { resolveBackingOf } from '../../block/full-filename.js';
import type { DriverInfo, ImageCheck, Json } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import type { ClusterMap, MapExtent } from '../../view/cluster-map.js';
import { type ImageFacts, type ImageStory, storyText } from '../../view/image-story.js';
import { Arguments, options } from './arguments.js';
import { fileFacts, findFileUse } from './file-use.js';
import { mapEntries } from './map.js';
import { explain, type Tool, ToolFailure } from './tool.js';

/** explain [-f FMT] [--image-opts] [-U] [--no-check] FILE: what an image is, in words and with a picture. */
export async function explainCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const args = new Arguments(words, options('f:', 'U|force-share', '|image-opts', '|no-check'));
  const filename = args.image();
  const how = {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
  };
  const { chain, brokenBy } = await chainOf(tool, { filename, ...how }, !args.has('no-check'));
  const seen = brokenBy === undefined ? await mapOf(tool, filename, how, chain) : { chain, map: undefined };
  tool.out.print(storyText({ ...seen, brokenBy }));
  return 0;
}

interface Named {
  filename: string;
  format: string | undefined;
  imageOpts?: boolean;
  forceShare: boolean;
}

/** Each image of the chain, opened alone. Errors: ToolFailure where the first cannot be. */
async function chainOf(
  tool: Tool,
  first: Named,
  checks: boolean,
): Promise<Pick<ImageStory, 'chain' | 'brokenBy'>> {
  const chain: ImageFacts[] = [];
  const seen = new Set<string>();
  let next: Named | undefined = first;
  while (next) {
    const { filename, ...how }: Named = next;
    if (seen.has(filename)) return { chain, brokenBy: `'${filename}' is below itself` };
    seen.add(filename);
    try {
      const { node } = await tool.open(filename, {
        ...how,
        backing: false,
        forCheck: checks,
        onlyLook: !checks,
      });
      chain.push(await factsOf(node, filename, checks));
      next = below(node, first.forceShare);
    } catch (error) {
      if (chain.length === 0 || !(error instanceof ToolFailure || error instanceof BlockError)) throw error;
      return { chain, brokenBy: error.message };
    }
    await tool.closeAll();
  }
  return { chain, brokenBy: undefined };
}

function below(node: Node, forceShare: boolean): Named | undefined {
  const { backingFilename, backingFormat: format } = node;
  if (backingFilename === undefined) return undefined;
  return { filename: resolveBackingOf(node, backingFilename), format, forceShare };
}

async function factsOf(node: Node, filename: string, checks: boolean): Promise<ImageFacts> {
  const { instance, driver } = node;
  const info = instance.info();
  const { features, needs } = particulars(info);
  const problems: string[] = [];
  if (info.isDirty === true) problems.push('its last user did not close it');
  if (info.isCorrupt === true)
    problems.push('it is marked as corrupt: it can only be read until it is repaired');
  const checked = checks ? await check(node, filename) : undefined;
  problems.push(...(checked?.problems ?? []));
  // A check of an image whose tables cannot be read has failed.
  const use = checked?.result && (await findFileUse(node, checked.result));
  return {
    filename,
    format: driver.name,
    diskBytes: node.lengthBytes,
    fileBytes: node.allocatedBytes(),
    features,
    needs,
    problems,
    isUnchecked: !checks || !instance.check,
    file: use && fileFacts(use),
  };
}

async function check(
  node: Node,
  filename: string,
): Promise<{ result?: ImageCheck | undefined; problems: string[] }> {
  try {
    const result = await node.instance.check?.('none', () => undefined);
    return { result, problems: result ? problemsOf(result, filename) : [] };
  } catch (error) {
    return { problems: [explain(error, 'it cannot be checked: ').message] };
  }
}

function problemsOf({ corruptions, leaks, checkErrors }: ImageCheck, filename: string): string[] {
  const how = `img check -r ${corruptions > 0 ? 'all' : 'leaks'} ${filename}`;
  return [
    ...(corruptions > 0 ? [`${corruptions} errors in its tables; "${how}" repairs what can be`] : []),
    ...(leaks > 0 ? [`${leaks} clusters take space and are nobody's; "${how}" frees them`] : []),
    ...(checkErrors > 0 ? [`${checkErrors} parts of its tables cannot be read`] : []),
  ];
}

/** What readers must know, by what the format tells of an image. */
const NEEDS: ReadonlyArray<readonly [key: string, value: Json, feature: string, reader: string]> = [
  ['compat', '1.1', 'compat 1.1 (zero clusters)', 'QEMU 1.1 and later can read it'],
  [
    'compression-type',
    'zstd',
    'zstd as its compression',
    'QEMU 5.1 and later can read it, where it has zstd',
  ],
  ['extended-l2', true, 'subclusters (extended L2 entries)', 'QEMU 5.2 and later can read it'],
  ['lazy-refcounts', true, 'lazy refcounts', ''],
];

function particulars({ formatSpecific, snapshots = [], clusterSizeBytes }: DriverInfo): {
  features: string[];
  needs: string[];
} {
  const data = (formatSpecific?.['data'] ?? {}) as { [key: string]: Json };
  const found = NEEDS.filter(([key, value]) => data[key] === value);
  const features = found.map(([, , feature]) => feature);
  // What the newest feature needs is enough for the older ones.
  const needs = found.map(([, , , reader]) => reader).filter((reader) => reader !== '');
  if (clusterSizeBytes !== undefined) features.unshift(`clusters of ${clusterSizeBytes} bytes`);
  if (snapshots.length > 0)
    features.push(`${snapshots.length} internal snapshot${snapshots.length > 1 ? 's' : ''}`);
  const dataFile = data['data-file'];
  if (typeof dataFile === 'string') {
    features.push(`its data in another file, '${dataFile}'`);
    needs.push('QEMU 4.0 and later can read it');
  }
  if (data['encrypt'] !== undefined) {
    features.push('encryption');
    needs.push('nobody can read it without its key');
  }
  return { features, needs: needs.slice(-1) };
}

/** With what the look at all of it has found. */
function withCutOff(facts: ImageFacts, node: Node | undefined): ImageFacts {
  if (node?.isCutOff !== true) return facts;
  return { ...facts, problems: [...facts.problems, 'its file was cut off: what is missing reads as zeroes'] };
}

async function mapOf(
  tool: Tool,
  filename: string,
  how: Omit<Named, 'filename'>,
  chain: readonly ImageFacts[],
): Promise<Pick<ImageStory, 'chain' | 'map'>> {
  const { node } = await tool.open(filename, how);
  const extents: MapExtent[] = [];
  for await (const { start, length, depth, present, zero } of mapEntries(node, 0, node.lengthBytes))
    extents.push({ start, lengthBytes: length, ...(present && { layer: depth }), isZero: zero });
  const map: ClusterMap = {
    diskBytes: node.lengthBytes,
    layers: chain.map((image) => image.filename),
    extents,
  };
  const nodes: Node[] = [];
  for (let next: Node | undefined = node; next; next = next.children.get('backing')?.node) nodes.push(next);
  return { map, chain: chain.map((facts, depth) => withCutOff(facts, nodes[depth])) };
}
