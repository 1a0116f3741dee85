import type { Node } from '../../block/node.js';
import { type Preallocation, PREALLOCATION_MODES, resizeImage } from '../../block/resize.js';
import { Arguments, options } from './arguments.js';
import { sizeValue } from './create-options.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

const SHRINK_WARNING =
  "qemu-img: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such " +
  'an operation, make sure there is no important data there.';

/** What has its size from elsewhere. Who needs less of it, as a format does, takes it as it is. */
const FIXED: ReadonlyMap<string, string> = new Map([
  ['host_device', 'device files'],
  ['nbd', 'NBD nodes'],
]);

/** resize [-f FMT] [--preallocation=MODE] [-q] [--shrink] [--image-opts] FILE [+|-]SIZE */
export async function resizeCommand(tool: Tool, words: readonly string[]): Promise<number> {
  // The size comes last, and may begin as an option does.
  const sizeText = words.at(-1);
  if (sizeText === undefined || words.length < 2) throw new UsageError('Not enough arguments');
  const taken = options('f:', 'q', '|image-opts', '|preallocation:', '|shrink');
  const args = new Arguments(words.slice(0, -1), taken, { preallocation: preallocationOf });
  const preallocation = preallocationOf(args.value('preallocation') ?? 'off');
  const [filename] = args.operands;
  if (filename === undefined || args.operands.length !== 1)
    throw new UsageError('Expecting image file name and size');
  const sign = /^[+-]/.exec(sizeText)?.[0];
  const bytes = sizeValue('size', sign === undefined ? sizeText : sizeText.slice(1));
  const backend = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    write: true,
    resize: true,
  });
  const oldBytes = backend.lengthBytes;
  const newBytes = sign === undefined ? bytes : oldBytes + (sign === '+' ? bytes : -bytes);
  if (newBytes <= 0) throw new ToolFailure('New image size must be positive');
  if (newBytes <= oldBytes && preallocation !== 'off')
    throw new ToolFailure('Preallocation can only be used for growing images');
  if (newBytes < oldBytes && !args.has('shrink'))
    throw new ToolFailure('Use the --shrink option to perform a shrink operation.', { hint: SHRINK_WARNING });
  const fixed = FIXED.get(fileOf(backend.node).driver.name);
  if (fixed !== undefined && newBytes !== oldBytes) throw new ToolFailure(`Cannot resize ${fixed}`);
  try {
    await resizeImage(backend, newBytes, preallocation);
  } catch (error) {
    throw explain(error, '');
  }
  if (!args.has('q')) tool.out.print('Image resized.\n');
  return 0;
}

/** Whose size an image has, where it has none of its own. */
function fileOf(image: Node): Node {
  const node = image.skipFilters();
  const file = node.driver.followsChildSize === true ? node.children.get('file') : undefined;
  return file ? fileOf(file.node) : node;
}

function preallocationOf(text: string): Preallocation {
  const mode = PREALLOCATION_MODES.find((one) => one === text);
  if (mode === undefined) throw new ToolFailure(`Invalid preallocation mode '${text}'`);
  return mode;
}
