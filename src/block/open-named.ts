import { BlockError } from '../base/error.js';
import { FlatOptions } from '../schema/flat.js';
import type { DriverDescription } from './driver.js';
import type { Node } from './node.js';
import { parseJsonName } from './node-plan.js';
import type { Opener, OpenContext } from './open.js';

/**
 * Opens an image by its file's name with flat options around it, as -drive and qemu-io's `open` give them; without a
 * name the options say all. Errors: invalid where both name a file; those of opening.
 */
export async function openNamed(
  opener: Opener,
  filename: string | undefined,
  options: FlatOptions,
  context: OpenContext,
): Promise<Node> {
  if (filename === undefined) return opener.openFlat(options, context);
  if (filename.startsWith('json:'))
    return opener.openFlat(options.withDefaults(parseJsonName(filename)), context);
  const driver = driverOf(opener, options);
  const isStorage = driver?.kind === 'protocol';
  if (options.has(isStorage ? 'filename' : 'file.filename') || (!isStorage && options.has('file.server')))
    throw new BlockError('invalid', "Can't specify 'file' and 'filename' options at the same time");
  const file = FlatOptions.of(await opener.parseFilename(filename));
  if (driver && ownsName(driver, file)) return opener.openFlat(options.withDefaults(nested(file)), context);
  if (driver?.options.children[0]?.role === 'image')
    return opener.openFlat(options.withDefaults({ image: nested(file) }), context);
  if (isStorage) return opener.openFlat(options.withDefaults(nested(file)), context);
  const below = options.copy().takeUnder('file').withDefaults(nested(file));
  return opener.openFlat(options.withDefaults({ file: nested(below) }), context);
}

/** A filter that has names ("blkdebug:"), of which this is one. */
function ownsName({ kind, name }: DriverDescription, file: FlatOptions): boolean {
  return kind === 'filter' && file.get('driver') === name;
}

function nested(options: FlatOptions): Record<string, never> {
  return Object.fromEntries(options.entries()) as Record<string, never>;
}

function driverOf(opener: Opener, options: FlatOptions): DriverDescription | undefined {
  const name = options.get('driver');
  return typeof name === 'string' ? opener.drivers.find(name) : undefined;
}
