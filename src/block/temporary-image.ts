import { createImage } from './create.js';
import type { Node } from './node.js';
import type { Opener } from './open.js';

/** A new image that nobody finds any more once `open` has opened it: it ends with its node. Errors: those of either. */
export async function openTemporary(
  opener: Opener,
  { folder, sizeBytes }: { folder: string; sizeBytes: number },
  open: (filename: string) => Promise<Node>,
): Promise<Node> {
  const { host } = opener;
  const filename = `${folder}/vl.${host.random.bytes(6).toString('hex')}`;
  await createImage(opener, filename, 'qcow2', { sizeBytes });
  return open(filename).finally(() => host.files.unlink(filename));
}
