import { BlockError } from '../base/error.js';
import { MAX_CHAIN_DEPTH } from '../base/limits.js';
import { FlatOptions } from '../schema/flat.js';
import type { JsonObject } from '../schema/types.js';
import { tooLong } from './chain-limit.js';
import { hasProtocol } from './filename.js';
import { NodeNames, resolveBackingOf } from './full-filename.js';
import type { Node } from './node.js';
import {
  backingError,
  type ChildPlan,
  namesFile,
  type NodePlan,
  parseJsonName,
  unknownOption,
} from './node-plan.js';
import type { Opener } from './open.js';
import { inheritable, isBeingOpened, type OpenContext, overlayOf } from './open-context.js';

const EMPTY_BACKING = 'Use of "backing": "" is deprecated; use "backing": null instead';

/** Of a node without its backing file none can be asked for. */
export function leaveBacking(opener: Opener, { driver, backing }: NodePlan): void {
  if (backing === '') opener.onWarning(EMPTY_BACKING);
  else if (typeof backing === 'string') throw unknownOption(driver, 'backing');
  else if (backing instanceof FlatOptions) throw unknownOption(driver, `backing.${backing.firstKey}`);
  else if (backing) throw unknownOption(driver, 'backing.driver');
}

/** The backing file that a node's options ask for, or that its image names, and its whole chain. */
export async function openBacking(
  opener: Opener,
  node: Node,
  wanted: ChildPlan | null | undefined,
  context: OpenContext,
): Promise<void> {
  if (wanted === '') opener.onWarning(EMPTY_BACKING);
  if (wanted === null || wanted === '') return;
  const names = context.names ?? new NodeNames();
  const below: OpenContext = { ...inheritable(context), readOnly: true, names };
  const named = node.instance.backing;
  let child: Node | undefined;
  if (wanted instanceof FlatOptions) child = await openAddedBacking(opener, node, wanted, below);
  else if (wanted !== undefined) child = await resolveBacking(opener, wanted, below);
  else if (named) child = await openBackingFile(opener, node, named, below);
  if (!child) return;
  const backing = child;
  if (wanted === undefined) node.automaticBacking = names.of(backing);
  try {
    await opener.graph.transaction((transaction) => void transaction.attach(node, 'backing', backing));
    if (typeof wanted !== 'string') backing.inheritsFrom = node;
  } catch (error) {
    if (typeof wanted !== 'string') await opener.graph.release([backing]);
    throw error;
  }
}

async function resolveBacking(opener: Opener, wanted: ChildPlan, context: OpenContext): Promise<Node> {
  try {
    return await opener.resolve(wanted, context);
  } catch (error) {
    throw backingError(error);
  }
}

/** Options that add to what the image says of its backing file. */
async function openAddedBacking(
  opener: Opener,
  node: Node,
  added: FlatOptions,
  context: OpenContext,
): Promise<Node> {
  const { backing } = node.instance;
  const { format } = backing ?? {};
  let defaults: JsonObject = {};
  try {
    if (backing && !namesFile(added)) {
      opener.checkNamed(node, backing.filename);
      const filename = resolveBackingOf(node, backing.filename);
      defaults = filename.startsWith('json:')
        ? parseJsonName(filename)
        : { file: await opener.parseFilename(filename) };
    }
    const options = added.withDefaults({ ...defaults, ...(format !== undefined && { driver: format }) });
    return await opener.openFlat(options, context);
  } catch (error) {
    throw backingError(error);
  }
}

async function openBackingFile(
  opener: Opener,
  node: Node,
  backing: { filename: string; format?: string },
  context: OpenContext,
): Promise<Node> {
  const filename = resolveBackingOf(node, backing.filename);
  const overlay = overlayOf(node, context.overlay);
  if (overlay.layers > MAX_CHAIN_DEPTH) throw tooLong();
  if (!hasProtocol(filename) && isBeingOpened(filename, overlay)) {
    throw new BlockError('invalid', `Backing file '${filename}' creates an infinite loop.`, {
      path: filename,
    });
  }
  try {
    opener.checkNamed(node, backing.filename);
    return await opener.openImage(filename, backing.format, { ...context, overlay });
  } catch (error) {
    throw backingError(error, filename);
  }
}
