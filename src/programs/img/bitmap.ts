import { given } from '../../base/given.js';
import { BITMAP_ACTIONS } from '../../monitor/bitmaps.js';
import type { Parts } from '../../monitor/parts.js';
import { Arguments, options, sizeOf } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

const ACTIONS = ['add', 'remove', 'clear', 'enable', 'disable', 'merge'] as const;

type Action = { kind: (typeof ACTIONS)[number]; source: string };

/** What the actions are done to. */
interface Where {
  /** The image's node. */
  node: string;
  bitmap: string;
  granularity: number | undefined;
  /** The node of the bitmaps that are merged. */
  sourceNode: string;
}

/**
 * bitmap (--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b FILE [-F FMT]] [-g GRANULARITY]
 * [--image-opts | -f FMT] FILE BITMAP: one action after the other, up to the first that fails.
 */
export async function bitmapCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const flags = ['|add', '|remove', '|clear', '|enable', '|disable', '|merge:', '|image-opts'];
  const taken = options('b|source-file:', 'f:', 'F|source-format:', 'g|granularity:', ...flags);
  const args = new Arguments(words, taken, { granularity: granularityOf });
  const granularity = granularityOf(args.value('granularity') ?? '0');
  const actions = actionsOf(args);
  checkTogether(args, actions, granularity);
  const [filename, bitmap] = args.operands;
  if (filename === undefined || bitmap === undefined || args.operands.length > 2)
    throw new ToolFailure('Expecting filename and bitmap name');
  const { node } = await tool.open(filename, {
    format: args.value('f'),
    imageOpts: args.has('image-opts'),
    write: true,
    backing: false,
  });
  const sourceFile = args.value('source-file');
  const source =
    sourceFile === undefined
      ? node
      : (await tool.open(sourceFile, { format: args.value('source-format'), backing: false })).node;
  const where = { node: node.name, bitmap, granularity, sourceNode: source.name };
  for (const action of actions) {
    try {
      await act(tool, action, where);
    } catch (error) {
      throw explain(error, `Operation ${action.kind} on bitmap ${bitmap} failed: `);
    }
  }
  return 0;
}

/** 0 is the default's too. */
function granularityOf(text: string): number | undefined {
  const bytes = sizeOf(text, 'granularity');
  return bytes === 0 ? undefined : bytes;
}

function actionsOf(args: Arguments): Action[] {
  const actions: Action[] = [];
  for (const { name, value: source } of args.given) {
    const kind = ACTIONS.find((action) => action === name);
    if (kind) actions.push({ kind, source });
  }
  if (actions.length > 0) return actions;
  throw new ToolFailure('Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
}

function checkTogether(args: Arguments, actions: readonly Action[], granularity: number | undefined): void {
  const has = (wanted: Action['kind']): boolean => actions.some(({ kind }) => kind === wanted);
  if (granularity !== undefined && !has('add'))
    throw new ToolFailure('granularity only supported with --add');
  if (args.has('source-file') && !has('merge'))
    throw new ToolFailure('Merge bitmap source file only supported with --merge');
  if (args.has('source-format') && !args.has('source-file'))
    throw new ToolFailure('-F only supported with -b');
}

async function act(tool: Tool, { kind, source }: Action, where: Where): Promise<void> {
  const { graph } = tool;
  const engine: Parts<'graph'> = { graph };
  const { node, bitmap: name, granularity, sourceNode } = where;
  switch (kind) {
    case 'add':
      BITMAP_ACTIONS['block-dirty-bitmap-add'](engine, {
        node,
        name,
        ...given({ granularity }),
        persistent: true,
      });
      return;
    case 'merge': {
      const bitmaps = [{ node: sourceNode, name: source }];
      BITMAP_ACTIONS['block-dirty-bitmap-merge'](engine, { node, target: name, bitmaps });
      return;
    }
    case 'remove':
      return (await BITMAP_ACTIONS['block-dirty-bitmap-remove'](engine, { node, name })).settle();
    default:
      BITMAP_ACTIONS[`block-dirty-bitmap-${kind}`](engine, { node, name });
  }
}
