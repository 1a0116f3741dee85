import type { NodeOptions } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import type { OpenContext, Opener } from '../../block/open.js';

/**
 * Opens the image that a tool's command line names. `protocol`: options of the file below it, where it is a file.
 * Without a format it is probed, and the opener's onProbed told.
 */
export async function openNamed(
  opener: Opener,
  filename: string,
  format: string | undefined,
  context: OpenContext,
  protocol: NodeOptions = {},
): Promise<Node> {
  if (filename.startsWith('json:')) return opener.openImage(filename, format, context);
  const below = opener.drivers.parseFilename(filename);
  if (below['driver'] === 'file') {
    Object.assign(below, protocol);
    if (context.forceShare === true) below['force-share'] = true;
  }
  if (format !== undefined && opener.drivers.get(format).kind === 'protocol')
    return opener.open(below, context);
  const driver = format ?? (await opener.probeFormat(filename));
  const guessed = format === undefined;
  if (guessed) opener.onProbed(filename, driver, context.readOnly);
  return opener.open({ driver, file: below }, { ...context, guessed });
}
