import type { Node } from '../../block/node.js';
import type { OpenContext, Opener } from '../../block/open.js';
import { openTemporary } from '../../block/temporary-image.js';

/** An image above another one, which is opened to be read: what is written goes to a file that is gone with the program. */
export function openAbove(opener: Opener, image: Node, context: OpenContext): Promise<Node> {
  const place = { folder: process.env['TMPDIR'] ?? '/var/tmp', sizeBytes: image.lengthBytes };
  return openTemporary(opener, place, (filename) =>
    opener.open(
      { driver: 'qcow2', file: { driver: 'file', filename }, backing: image.name },
      // What others may do with the image they may not do with this.
      { ...context, forceShare: false },
    ),
  );
}
