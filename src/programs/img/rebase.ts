import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { resolveBackingOf } from '../../block/full-filename.js';
import type { Node } from '../../block/node.js';
import { findInChain } from '../../library/images/commit.js';
import { keepContent } from '../../library/images/rebase.js';
import { Arguments, cacheMode, options } from './arguments.js';
import type { Progress } from './progress.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

/**
 * rebase [-U] [-q] [-f FMT] [-t CACHE] [-T CACHE] [-p] [-u] [-b FILE [-F FMT]] [--image-opts] FILE: another backing file
 * behind the same content, or with -u only another name of it.
 */
export async function rebaseCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'F:', 'b:', 'u', 'p', 'q', 't:', 'T:', 'U|force-share', '|image-opts');
  const args = new Arguments(words, taken);
  const filename = args.image();
  const isUnsafe = args.has('u');
  const newName = args.value('b');
  if (!isUnsafe && newName === undefined)
    throw new UsageError('Must specify backing file (-b) or use unsafe mode (-u)');
  const progress = tool.progress(args.has('p') && !args.has('q')).begin();
  const cache = cacheMode(args, 't', 'writeback', 'cache');
  cacheMode(args, 'T', 'writeback', 'source cache');
  const overlay = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    write: true,
    backing: !isUnsafe,
    cache: cache.options,
    writethrough: cache.writethrough,
  });
  const newFormat = args.value('F');
  if (newFormat !== undefined && !tool.opener.drivers.find(newFormat))
    throw new ToolFailure(`Invalid format name: '${newFormat}'`);
  if (!isUnsafe) await keepWhatIsShown(tool, args, overlay, progress);
  await changeBacking(overlay.node, newName, newFormat);
  progress.complete();
  progress.finish();
  return 0;
}

/** What the new backing file would show otherwise goes into the image. */
async function keepWhatIsShown(
  tool: Tool,
  args: Arguments,
  overlay: BlockBackend,
  progress: Progress,
): Promise<void> {
  const old = overlay.node.backingNode();
  const oldBacking = old && (await tool.use(old));
  const newBacking = await openNew(tool, args, overlay.node);
  try {
    await keepContent(
      { overlay, oldBacking, newBacking },
      {
        buffer: (lengthBytes) => tool.host.files.buffer(lengthBytes),
        onProgress: (done, total) => progress.update(done, total),
      },
    );
  } catch (error) {
    throw explain(error, '');
  }
  for (const backend of [oldBacking, newBacking]) if (backend) await tool.close(backend);
}

/** As the image is to name it; one that is in its chain already is not opened again. Errors: ToolFailure. */
async function openNew(tool: Tool, args: Arguments, overlay: Node): Promise<BlockBackend | undefined> {
  const name = args.value('b') ?? '';
  if (name === '') return undefined;
  const known = await findInChain(tool.opener, overlay, name);
  if (known) return tool.use(known);
  try {
    return await tool.openAs(resolveBackingOf(overlay, name), {
      format: args.value('F'),
      forceShare: args.has('force-share'),
      cache: cacheMode(args, 'T', 'writeback', 'source cache').options,
    });
  } catch (error) {
    throw explain(error, `Could not open new backing file '${name}': `);
  }
}

/** Errors: ToolFailure, in qemu-img's words. */
async function changeBacking(
  { instance }: Node,
  given: string | undefined,
  format: string | undefined,
): Promise<void> {
  const name = given ?? '';
  const refusal = (why: string): ToolFailure =>
    new ToolFailure(`Could not change the backing file to '${given ?? '(null)'}': ${why}`);
  if (name !== '' && format === undefined) throw refusal('backing format must be specified');
  if (!instance.changeBacking) throw refusal(errnoText('ENOTSUP'));
  try {
    await instance.changeBacking(name === '' ? undefined : name, name === '' ? undefined : format);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const errno = errnoOf(error);
    throw refusal(errno === 'ENOSPC' ? 'No space left in the file header' : errnoText(errno));
  }
}
