import { BlockError } from '../../base/error.js';
import type { Settings } from '../../block/driver.js';
import type { FILE_OPTIONS } from '../../schema/blockdev-options.js';

export type FileSettings = Settings<typeof FILE_OPTIONS>;

/**
 * What an option's type cannot say. How requests are made is the same whatever `aio` says: at once where the page
 * cache has the data, else on a thread. Errors: kind invalid, in QEMU's words.
 */
export function checkFileSettings(driverName: string, { filename, aio, cache }: FileSettings): void {
  if (filename === '')
    throw new BlockError('invalid', `The '${driverName}' block driver requires a file name`);
  if (aio === 'native' && !cache.direct) {
    throw new BlockError(
      'invalid',
      'aio=native was specified, but it requires cache.direct=on, which was not specified.',
    );
  }
}
