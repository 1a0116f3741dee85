import { posix } from 'node:path';
import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import {
  absoluteFrom,
  type PointFile,
  PointsChangedError,
  readPointFile,
  removeCutShort,
  seenFrom,
  SUFFIX,
  writePointFile,
} from './point-file.js';

/**
 * A disk's images may come to lie in other folders than its points file, which is looked for beside them: there a file of the
 * same form says where it is.
 */

/** The points file that one found in a folder is, or tells of; undefined where that is gone. Errors: corrupt; those of reading. */
export async function followed(host: Host, file: PointFile): Promise<PointFile | undefined> {
  const { at } = file.content;
  if (at === undefined) return file;
  const path = absoluteFrom(file.path, at);
  if (!(await host.files.stat(path))) return undefined;
  const found = await readPointFile(host, path);
  return found.content.at === undefined ? found : undefined;
}

/** Makes sure that a disk's points file is found from that folder; durable on return. Errors: those of writing. */
export async function signpost(
  host: Host,
  { path, content: { disk, active } }: Pick<PointFile, 'path' | 'content'>,
  folder: string,
): Promise<void> {
  const whole = posix.resolve(path);
  if (posix.resolve(folder) === posix.dirname(whole)) return;
  for (let number = 1; ; number++) {
    const name = `${number === 1 ? disk : `${disk}-${number}`}${SUFFIX}`;
    const post = posix.join(folder, name);
    const there = await readPost(host, post);
    if (there === whole) {
      await removeCutShort(host, post);
      // Who made it may have been killed before its name was durable.
      return host.files.syncDirectory(folder);
    }
    if (there !== undefined) continue;
    const content = {
      disk,
      active: absoluteFrom(path, active),
      at: seenFrom(post, path),
      images: [],
      points: [],
    };
    try {
      await writePointFile(host, { path: post, content, sequence: 0 });
      return;
    } catch (error) {
      if (!(error instanceof PointsChangedError)) throw error;
      // Somebody has just made it: what it is the next look tells.
      number--;
    }
  }
}

/** Which points file a name tells of; undefined where nothing has the name. */
async function readPost(host: Host, path: string): Promise<string | undefined> {
  if (!(await host.files.stat(path))) return undefined;
  try {
    const { at } = (await readPointFile(host, path)).content;
    return at === undefined ? path : absoluteFrom(path, at);
  } catch (error) {
    if (error instanceof BlockError) return path;
    throw error;
  }
}
