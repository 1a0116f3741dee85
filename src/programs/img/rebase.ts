import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import { Arguments, options } from './arguments.js';
import { type Tool, ToolFailure, UsageError } from './tool.js';

/** rebase -u [-b FILE [-F FMT]] [-f FMT] [--image-opts] FILE: changes what the image says its backing file is, nothing else. */
export async function rebaseCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('f:', 'F:', 'b:', 'u', 'p', 'q', '|image-opts');
  const args = new Arguments('rebase', words, taken, options('t:', 'T:', 'U|force-share'));
  const [filename] = args.operands;
  if (filename === undefined || args.operands.length !== 1)
    throw new UsageError('Expecting one image file name');
  const backing = args.value('b');
  if (!args.has('u')) {
    if (backing === undefined) throw new UsageError('Must specify backing file (-b) or use unsafe mode (-u)');
    throw new ToolFailure('rebase: safe mode (without -u) is not supported by livedisk');
  }
  const backingFormat = args.value('F');
  const backend = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    write: true,
    backing: false,
  });
  if (backingFormat !== undefined && !tool.opener.drivers.find(backingFormat))
    throw new ToolFailure(`Invalid format name: '${backingFormat}'`);
  const name = backing === '' ? undefined : backing;
  const refusal = (why: string): ToolFailure =>
    new ToolFailure(`Could not change the backing file to '${backing ?? ''}': ${why}`);
  if (name !== undefined && backingFormat === undefined && backend.node.instance.changeBacking)
    throw refusal('backing format must be specified');
  try {
    if (!backend.node.instance.changeBacking) throw refusal(errnoText('ENOTSUP'));
    await backend.node.instance.changeBacking(name, name === undefined ? undefined : backingFormat);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const errno = errnoOf(error);
    throw refusal(errno === 'ENOSPC' ? 'No space left in the file header' : errnoText(errno));
  }
  return 0;
}
