import type { Json } from '../../block/driver.js';
import { NodeNames, resolveBackingOf } from '../../block/full-filename.js';
import type { Node } from '../../block/node.js';
import { infoText } from '../../monitor/image-text.js';
import { imageInfo } from '../../monitor/node-info.js';
import { fileLines } from '../../view/file-use.js';
import { fileFacts, findFileUse, type FoundUse, foundUseJson } from './file-use.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

type Info = { [key: string]: Json };

/** info [-f FMT] [--output=human|json] [--backing-chain] [--file-use] [-U] [--image-opts] FILE */
export async function infoCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    'f|format:',
    '|output:',
    '|backing-chain',
    'U|force-share',
    '|image-opts',
    '|file-use',
  );
  const args = new Arguments(words, taken);
  const filename = args.image();
  const json = args.wantsJson();
  const chain = args.has('backing-chain');
  const first = { filename, format: args.value('format'), imageOpts: args.has('image-opts') };
  const how = { chain, forceShare: args.has('force-share'), tellsUse: args.has('file-use') };
  const told = await collect(tool, first, how);
  const infos = told.map(({ info, use }) => ({ ...info, ...(use && { 'x-file-use': foundUseJson(use) }) }));
  if (json) tool.printJson(chain ? infos : (infos[0] ?? {}));
  else tool.out.print(told.map(({ info, use }) => infoText(info) + useText(use)).join('\n'));
  return 0;
}

function useText(use: FoundUse | undefined): string {
  if (!use) return '';
  return ['Use of its file:', ...fileLines(fileFacts(use)).map((line) => `    ${line}`), ''].join('\n');
}

/** What is said of an image. */
interface Told {
  info: Info;
  use: FoundUse | undefined;
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
  { chain, forceShare, tellsUse }: { chain: boolean; forceShare: boolean; tellsUse: boolean },
): Promise<Told[]> {
  const infos: Told[] = [];
  const seen = new Set<string>();
  let next: Named | undefined = first;
  while (next) {
    const { filename, ...how }: Named = next;
    if (seen.has(filename)) throw new ToolFailure(`Backing file '${filename}' creates an infinite loop.`);
    seen.add(filename);
    const backend = await tool.open(filename, { ...how, forceShare, backing: false, onlyLook: true });
    const { node } = backend;
    const use = tellsUse ? await findFileUse(node) : undefined;
    infos.push({ info: imageInfo(node, new NodeNames({ ignoresBacking: true })), use });
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
