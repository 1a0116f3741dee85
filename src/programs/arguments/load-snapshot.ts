import { BlockError } from '../../base/error.js';
import { findByIdOrName, showSnapshot } from '../../block/internal-snapshots.js';
import type { Node } from '../../block/node.js';
import { split } from './image-opts.js';

/** Which internal snapshot `-l` means: an id or a name, or `snapshot.id=ID,snapshot.name=NAME`. */
export type LoadSnapshot =
  { readonly idOrName: string } | { readonly id: string | undefined; readonly name: string | undefined };

/** Errors: invalid, in QEMU's words but for what it says besides. */
export function parseLoadSnapshot(text: string): LoadSnapshot {
  if (!text.startsWith('snapshot.')) return { idOrName: text };
  const wanted: { id: string | undefined; name: string | undefined } = { id: undefined, name: undefined };
  for (const { key, value } of split(text, undefined)) {
    if (key === 'snapshot.id') wanted.id = value;
    else if (key === 'snapshot.name') wanted.name = value;
    else throw new BlockError('invalid', `Invalid parameter '${key}'`);
  }
  return wanted;
}

/** The node, which is only read, shows the disk as it was then. Errors: invalid, unsupported, those of reading. */
export async function loadSnapshot(node: Node, wanted: LoadSnapshot): Promise<void> {
  try {
    const found = 'idOrName' in wanted ? findByIdOrName(node, wanted.idOrName) : wanted;
    await showSnapshot(node, found ?? {});
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    const text = `Failed to load snapshot: ${error.message}`;
    throw new BlockError(error.kind, text, { cause: error });
  }
}
