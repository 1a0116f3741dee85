import { readdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { DriverRegistry } from '../../block/registry.js';
import { readHeader } from '../../block/shared-bases.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import type { View } from '../../view/model.js';
import type { Beside, BesideFile } from '../../web/messages.js';
import { pathOf } from './file-facts.js';

/** A look at one takes about a millisecond. */
const MOST_FILES = 2000;

/**
 * Images in the folders of a server's images that it does not have open, with those of its images that they stand on.
 * `mayLook` says of a folder whether it may be looked into.
 */
export async function lookBeside(
  host: Host,
  view: View,
  folder: string | undefined,
  mayLook: (folder: string) => boolean,
): Promise<Beside> {
  const opener = new Opener(new Graph(host), new DriverRegistry(allDrivers));
  const open = new Map<string, string>();
  const folders = new Set<string>();
  for (const image of view.images) {
    const path = pathOf(image, folder);
    const identity = path === undefined ? undefined : await identityOf(path);
    if (path === undefined || identity === undefined) continue;
    open.set(identity, image.id);
    if (mayLook(dirname(path))) folders.add(dirname(path));
  }
  const paths: string[] = [];
  for (const one of folders) for (const name of (await readdir(one)).sort()) paths.push(join(one, name));
  const seen = new Map<
    string,
    { file: string; format: string; bytes: number; backing: string | undefined }
  >();
  for (const path of paths.slice(0, MOST_FILES)) {
    const found = await stat(path).catch(() => undefined);
    const identity = found?.isFile() === true ? `${found.dev}:${found.ino}` : undefined;
    if (!found || identity === undefined || open.has(identity) || seen.has(identity)) continue;
    const header = await readHeader(opener, path);
    if (!header) continue;
    const [backing] = header.backing;
    const bytes = found.blocks * 512;
    seen.set(identity, { ...{ file: path, format: header.format, bytes }, backing });
  }
  const files: BesideFile[] = [];
  for (const { file, format, bytes, backing } of seen.values()) {
    const standsOn = await baseOf(backing, open, seen);
    files.push({
      ...{ file, format, bytes },
      ...(backing !== undefined && { backing }),
      ...(standsOn !== undefined && { standsOn }),
    });
  }
  return { folders: [...folders], files, isCut: paths.length > MOST_FILES };
}

/** The image of the server that a file's backing files lead to. */
async function baseOf(
  backing: string | undefined,
  open: ReadonlyMap<string, string>,
  seen: ReadonlyMap<string, { backing: string | undefined }>,
): Promise<string | undefined> {
  const passed = new Set<string>();
  for (let path = backing; path !== undefined;) {
    const identity = await identityOf(path);
    if (identity === undefined || passed.has(identity)) return undefined;
    passed.add(identity);
    const image = open.get(identity);
    if (image !== undefined) return image;
    path = seen.get(identity)?.backing;
  }
  return undefined;
}

async function identityOf(path: string): Promise<string | undefined> {
  const found = await stat(path).catch(() => undefined);
  return found && `${found.dev}:${found.ino}`;
}
