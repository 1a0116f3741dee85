import type { Node } from '../../block/node.js';
import { commitImage, findInChain } from '../../library/images/commit.js';
import { Arguments, cacheMode, options, sizeOf } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

/**
 * commit [-q] [-f FMT] [-t CACHE] [-b BASE] [-r RATE] [-d] [-p] [--image-opts] [--protect-shared-bases]
 * [--shared-bases-folder FOLDER]... FILE
 */
export async function commitCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options(
    ...['f:', 't:', 'b:', 'r:', 'd', 'p', 'q', '|image-opts'],
    ...['|protect-shared-bases', '|shared-bases-folder:'],
  );
  const args = new Arguments(words, taken, { r: (text) => sizeOf(text, 'rate limit') });
  const bytesPerSecond = args.size('r', 'rate limit') ?? 0;
  const isQuiet = args.has('q');
  const filename = args.image();
  const cache = cacheMode(args, 't', 'writeback', 'cache');
  const top = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    write: true,
    cache: cache.options,
    writethrough: cache.writethrough,
  });
  const progress = tool.progress(args.has('p') && !isQuiet).begin();
  const base = await baseOf(tool, top.node, filename, args.value('b'));
  try {
    await commitImage(tool.opener, top.node, {
      base,
      // What is deeper than the next layer leaves those in between as they are, so the image must be kept too.
      keep: args.has('d') || args.has('b'),
      bytesPerSecond,
      protection: { refuses: args.has('protect-shared-bases'), folders: args.values('shared-bases-folder') },
      onSharers: (text) => tool.out.error(`qemu-img: warning: ${text}\n`),
      onProgress: (done, total) => progress.update(done, total),
    });
  } catch (error) {
    throw explain(error, '');
  }
  progress.complete();
  progress.finish();
  if (!isQuiet) tool.out.print('Image committed.\n');
  return 0;
}

/** Errors: ToolFailure. */
async function baseOf(tool: Tool, top: Node, filename: string, name: string | undefined): Promise<Node> {
  if (name === undefined) {
    const below = top.backingNode();
    if (!below) throw new ToolFailure('Image does not have a backing file');
    return below;
  }
  const base = await findInChain(tool.opener, top, name, { asShown: false });
  if (base) return base;
  throw new ToolFailure(`Did not find '${name}' in the backing chain of '${filename}'`);
}
