import { posix } from 'node:path';
import { BlockError } from '../base/error.js';
import type { NamedFile } from './driver.js';
import { hasProtocol } from './filename.js';
import { resolveBackingOf } from './full-filename.js';
import type { Node } from './node.js';
import type { Opener } from './open.js';
import { inheritable, type OpenContext } from './open-context.js';

/** Opens the files that an image names as parts of it. Errors: invalid for a name that is no path; those of opening. */
export async function attachNamedFiles(
  opener: Opener,
  node: Node,
  files: readonly NamedFile[],
  context: OpenContext,
): Promise<void> {
  for (const { role, filename, what, isFromHere } of files) {
    if (node.children.has(role)) continue;
    if (hasProtocol(filename)) {
      const text = `The image names '${filename}' as its ${what}: that must be a plain file`;
      throw new BlockError('invalid', text, { path: node.filename });
    }
    const path = isFromHere === true ? filename : resolveBackingOf(node, filename);
    opener.checkNamed(node, isFromHere === true ? posix.resolve(filename) : path);
    const child = await opener.open(await opener.parseFilename(path), inheritable(context));
    try {
      await opener.graph.transaction((transaction) => void transaction.attach(node, role, child));
      child.inheritsFrom = node;
    } catch (error) {
      await opener.graph.release([child]);
      throw error;
    }
  }
}
