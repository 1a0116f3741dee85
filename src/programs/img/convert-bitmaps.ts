import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { Node } from '../../block/node.js';
import { BITMAP_ACTIONS } from '../../monitor/bitmaps.js';
import type { Arguments } from './arguments.js';
import { explain, type Tool, ToolFailure } from './tool.js';

/** convert --bitmaps [--skip-broken-bitmaps]: the bitmaps that the source itself keeps go along with its content. */
export class BitmapCopy {
  readonly #tool: Tool;
  readonly #skipsBroken: boolean;

  /** Undefined: not asked for. Errors: ToolFailure. */
  static of(tool: Tool, args: Arguments): BitmapCopy | undefined {
    const skipsBroken = args.has('skip-broken-bitmaps');
    if (args.has('bitmaps')) return new BitmapCopy(tool, skipsBroken);
    if (skipsBroken) throw new ToolFailure('Use of --skip-broken-bitmaps requires --bitmaps');
    return undefined;
  }

  private constructor(tool: Tool, skipsBroken: boolean) {
    this.#tool = tool;
    this.#skipsBroken = skipsBroken;
  }

  /** Before anything is made. Errors: ToolFailure. */
  checkSources(sources: readonly Node[]): void {
    const [source] = sources;
    if (source === undefined || sources.length > 1)
      throw new ToolFailure('Copying bitmaps only possible with single source');
    if (source.instance.bitmaps?.isSupported !== true) throw new ToolFailure('Source lacks bitmap support');
    if (this.#skipsBroken) return;
    for (const { name, inconsistent } of keptBy(source))
      if (inconsistent)
        throw new ToolFailure(`Cannot copy inconsistent bitmap '${name ?? ''}'`, {
          hint: "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
        });
  }

  checkTarget(target: Node): void {
    if (target.instance.bitmaps?.isSupported === true) return;
    throw new ToolFailure(`Format driver '${target.driver.name}' does not support bitmaps`);
  }

  copy(source: Node, target: Node): void {
    for (const bitmap of keptBy(source)) {
      if (!bitmap.inconsistent) this.#copyOne(bitmap, source, target);
      else this.#tool.opener.onWarning(`Skipping inconsistent bitmap '${bitmap.name ?? ''}'`);
    }
  }

  #copyOne({ name = '', granularityBytes, enabled }: DirtyBitmap, source: Node, target: Node): void {
    const engine = { graph: this.#tool.graph };
    const node = target.name;
    const made = { node, name, granularity: granularityBytes, persistent: true, disabled: true };
    const merged = { node, target: name, bitmaps: [{ node: source.name, name }] };
    attempt(`Failed to create bitmap ${name}: `, () =>
      BITMAP_ACTIONS['block-dirty-bitmap-add'](engine, made),
    );
    attempt(`Failed to populate bitmap ${name}: `, () => {
      BITMAP_ACTIONS['block-dirty-bitmap-merge'](engine, merged);
      if (enabled) BITMAP_ACTIONS['block-dirty-bitmap-enable'](engine, { node, name });
    });
  }
}

/** The newest first, as QEMU has them. */
function keptBy({ dirtyBitmaps }: Node): DirtyBitmap[] {
  return dirtyBitmaps.filter(({ persistent }) => persistent).reverse();
}

function attempt(prefix: string, body: () => unknown): void {
  try {
    body();
  } catch (error) {
    throw explain(error, prefix);
  }
}
