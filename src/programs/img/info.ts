import type { Json } from '../../block/driver.js';
import { NodeNames, resolveBackingOf } from '../../block/full-filename.js';
import type { Node } from '../../block/node.js';
import { infoText } from '../../monitor/image-text.js';
import { imageInfo } from '../../monitor/node-info.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

type Info = { [key: string]: Json };

/** info [-f FMT] [--output=human|json] [--backing-chain] [-U] [--image-opts] FILE */
export async function infoCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f|format:', '|output:', '|backing-chain', 'U|force-share', '|image-opts');
  const args = new Arguments('info', words, taken, []);
  const json = args.wantsJson();
  const filename = args.image();
  const chain = args.has('backing-chain');
  const first = { filename, format: args.value('format'), imageOpts: args.has('image-opts') };
  const infos = await collect(tool, first, { chain, forceShare: args.has('force-share') });
  if (json) tool.printJson(chain ? infos : (infos[0] ?? {}));
  else tool.out.print(infos.map(infoText).join('\n'));
  return 0;
}

/** How an image is told of: by its name, or by options. */
interface Named {
  filename: string;
  format: string | undefined;
  imageOpts?: boolean;
}

/** The image, and with `chain` all below it; each is opened alone, so that a broken chain can be looked at. */
async function collect(
  tool: Tool,
  first: Named,
  { chain, forceShare }: { chain: boolean; forceShare: boolean },
): Promise<Info[]> {
  const infos: Info[] = [];
  const seen = new Set<string>();
  let next: Named | undefined = first;
  while (next) {
    const { filename, ...how }: Named = next;
    if (seen.has(filename)) throw new ToolFailure(`Backing file '${filename}' creates an infinite loop.`);
    seen.add(filename);
    const backend = await tool.open(filename, { ...how, forceShare, backing: false, onlyLook: true });
    const { node } = backend;
    infos.push(imageInfo(node, new NodeNames({ ignoresBacking: true })));
    next =
      chain && node.backingFilename !== undefined
        ? { filename: fullName(tool, node, node.backingFilename), format: node.backingFormat }
        : undefined;
    await tool.close(backend);
  }
  return infos;
}

function fullName(tool: Tool, image: Node, backing: string): string {
  try {
    tool.opener.checkNamed(image, backing);
    return resolveBackingOf(image, backing);
  } catch (error) {
    throw explain(error, '');
  }
}
