import { readFileSync } from 'node:fs';
import { stat, statfs } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { type FileFacts, fileNameOf, type Image, type View } from '../../view/model.js';

/** Where QEMU and livedisk lock an image: a byte for each permission that is held, and for each that is not shared. */
const LOCK_BYTES = { first: 100, end: 300 };
/** Images that are looked at: more than people look at. */
const MOST_FILES = 2000;

/**
 * What this machine tells of the files of a server's images, by their ids. Names that are no paths here are passed over;
 * relative ones are those of `folder`, where it is given. Nothing is opened.
 */
export async function lookAtFiles(view: View, folder: string | undefined): Promise<Map<string, FileFacts>> {
  const paths = view.images.slice(0, MOST_FILES).flatMap((image) => {
    const path = pathOf(image, folder);
    return path === undefined ? [] : [{ image, path }];
  });
  const stats = await Promise.all(
    paths.map(({ path }) => stat(path, { bigint: true }).catch(() => undefined)),
  );
  const own = new Map<string, number>();
  for (const one of stats) if (one) own.set(keyOf(one), (own.get(keyOf(one)) ?? 0) + 1);
  const holders = lockHolders();
  const spaces = new Map<bigint, { freeBytes: number; fileSystemBytes: number }>();
  const nowMs = Date.now();
  const facts = new Map<string, FileFacts>();
  for (const [i, { image, path }] of paths.entries()) {
    const one = stats[i];
    if (one?.isFile() !== true) continue;
    const space = spaces.get(one.dev) ?? (await spaceOf(path));
    if (!space) continue;
    spaces.set(one.dev, space);
    const key = keyOf(one);
    const bornMs = Number(one.birthtimeMs);
    facts.set(image.id, {
      // A file system that does not remember tells the beginning of time.
      ...(bornMs > 0 && { ageSeconds: secondsSince(bornMs, nowMs) }),
      unchangedSeconds: secondsSince(Number(one.mtimeMs), nowMs),
      ...space,
      otherHolders: Math.max(0, (holders.get(key) ?? 0) - (own.get(key) ?? 0)),
    });
  }
  return facts;
}

function secondsSince(ms: number, nowMs: number): number {
  return Math.max(0, Math.floor((nowMs - ms) / 1000));
}

/** Of an image in a file of this machine. */
export function pathOf(image: Image, folder: string | undefined): string | undefined {
  const { kind } = image;
  const filename = fileNameOf(image);
  if (kind !== 'image' || filename === '' || filename.includes('\0')) return undefined;
  if (isAbsolute(filename)) return filename;
  const isOther = /^[a-z0-9+.-]+:/i.test(filename);
  return folder === undefined || isOther ? undefined : join(folder, filename);
}

async function spaceOf(path: string): Promise<{ freeBytes: number; fileSystemBytes: number } | undefined> {
  try {
    const { bavail, blocks, bsize } = await statfs(path);
    return { freeBytes: bavail * bsize, fileSystemBytes: blocks * bsize };
  } catch {
    return undefined;
  }
}

/** As /proc/locks writes a file. */
function keyOf({ dev, ino }: { dev: bigint; ino: bigint }): string {
  const hex = (number: bigint): string => number.toString(16).padStart(2, '0');
  const [major, minor] = [(dev / 256n) % 4096n, (dev % 256n) + (dev / 2n ** 20n) * 256n];
  return `${hex(major)}:${hex(minor)}:${ino}`;
}

/** How many have each file open, as far as their locks tell: everybody who has an image open holds some byte. */
function lockHolders(): Map<string, number> {
  const byByte = new Map<string, number>();
  const holders = new Map<string, number>();
  for (const line of locksText().split('\n')) {
    const [, key, first = '', last = ''] =
      /^\d+: OFDLCK \S+ +(?:READ|WRITE) +-?\d+ +(\S+) (\d+) (\d+|EOF)$/.exec(line.trim()) ?? [];
    if (key === undefined) continue;
    const end = Math.min(LOCK_BYTES.end, last === 'EOF' ? Infinity : Number(last) + 1);
    for (let byte = Math.max(LOCK_BYTES.first, Number(first)); byte < end; byte++) {
      const count = (byByte.get(`${key} ${byte}`) ?? 0) + 1;
      byByte.set(`${key} ${byte}`, count);
      holders.set(key, Math.max(count, holders.get(key) ?? 0));
    }
  }
  return holders;
}

function locksText(): string {
  try {
    return readFileSync('/proc/locks', 'latin1');
  } catch {
    return '';
  }
}
