import { posix } from 'node:path';
import type { NewImage } from './create.js';
import { NotThawedError } from './guest-agent.js';
import { keep, loadDisks, makeDurable, type PointDisk, whileChanged } from './disks.js';
import { type Pending, type PointFileContent, PointVerb, seenFrom } from './point-file.js';
import type { PointServer } from './server.js';
import { signpost } from './signpost.js';
import { openFiles, unlinkUnused } from './unneeded.js';

interface Change {
  readonly disks: readonly PointDisk[];
  /** Of each disk the new active one. */
  readonly images: readonly NewImage[];
  readonly pendingOf: (disk: PointDisk, image: NewImage) => Pending;
}

/** What is about to be done to a disk, and the file where that is written down. */
interface Intent {
  readonly path: string;
  readonly pending: Pending;
  /** The disk's active image before it. */
  readonly wasActive: string;
  readonly wasFrozen: string | undefined;
}

/**
 * Gives disks new active images, which is written down before it is done, and durable on return. Errors: busy, where another
 * program is at it; those of writing and of `body`. Then nothing has changed, or what the chains show.
 */
export async function whileWrittenDown<T>(
  server: PointServer,
  change: Change,
  body: () => Promise<T>,
): Promise<T> {
  const verbs: PointVerb[] = [];
  const end = async (): Promise<void> => {
    for (const verb of verbs.splice(0)) await verb.end();
  };
  try {
    const intents: Intent[] = [];
    // Before that the files are nobody's, or another's.
    let made: readonly NewImage[] = [];
    let answer: T;
    try {
      await writeDown(server, change, verbs, intents);
      made = change.images;
      answer = await body();
      for (const { file } of change.images) await makeDurable(server.host, file);
    } catch (error) {
      await end();
      await takeBack(server, made, intents, error instanceof NotThawedError);
      throw error;
    }
    await settleNow(server, change.images, intents);
    return answer;
  } finally {
    await end();
  }
}

/** All of them, before anything is done; into `intents`, as each is. */
async function writeDown(
  server: PointServer,
  { disks, images, pendingOf }: Change,
  verbs: PointVerb[],
  intents: Intent[],
): Promise<void> {
  for (const [i, disk] of disks.entries()) {
    const image = images[i];
    if (!image) continue;
    const pending = pendingOf(disk, image);
    const { path, sequence } = disk.settled.file;
    if (sequence > 0) verbs.push(await PointVerb.begin(server.host, path));
    await keep(server, disk, (content) => ({ ...content, pending }));
    const { frozen: wasFrozen } = disk.settled.file.content;
    intents.push({ path, pending, wasActive: seenFrom(path, disk.top.path), wasFrozen });
    if (sequence === 0) verbs.push(await PointVerb.begin(server.host, path));
    await signpost(server.host, disk.settled.file, posix.dirname(image.file));
  }
}

/**
 * After an error: what was not done is taken back, as the server's images show. What has been done none the less (the guest
 * was not thawed after it, a layer did not close) stays, and so does all where the server cannot be asked any more.
 */
async function takeBack(
  server: PointServer,
  images: readonly NewImage[],
  intents: readonly Intent[],
  isFrozen: boolean,
): Promise<void> {
  try {
    // A mirror may have written into one that nobody uses now.
    const open = await openFiles(server);
    for (const { file } of images) {
      const stat = await server.host.files.stat(file);
      if (stat && !open.has(stat.identity)) await unlinkUnused(server, file);
    }
    await whileChanged(async () => {
      const { disks } = await loadDisks(server);
      for (const disk of disks) {
        const intent = intents.find(({ path }) => path === disk.settled.file.path);
        const frozen = isFrozen ? intent?.pending.agent : intent?.wasFrozen;
        if (intent) await keep(server, disk, (content) => withFrozen(content, frozen));
      }
    });
  } catch {
    // The first error is what is told; the points files say what was about to be.
  }
}

/** What the chains show. Another program that looked before it was done may have forgotten that it was to be. */
async function settleNow(
  server: PointServer,
  images: readonly NewImage[],
  intents: readonly Intent[],
): Promise<void> {
  const nodes = images.map((image) => image['new-node-name']);
  await whileChanged(async () => {
    for (const disk of (await loadDisks(server, nodes)).disks) {
      const { path, content } = disk.settled.file;
      const intent = intents.find((one) => one.path === path);
      if (!intent || isKnown(content, intent)) continue;
      const { pending, wasActive: active } = intent;
      await keep(server, disk, (now) => ({ ...now, active, pending }));
    }
    for (const disk of (await loadDisks(server, nodes)).disks) {
      const { path, content } = disk.settled.file;
      const agent = intents.find((one) => one.path === path)?.pending.agent;
      const frozen = content.frozen === agent ? undefined : content.frozen;
      await keep(server, disk, (now) => withFrozen(now, frozen));
    }
  });
}

function withFrozen(content: PointFileContent, agent: string | undefined): PointFileContent {
  const { frozen: _, ...rest } = content;
  return agent === undefined ? rest : { ...rest, frozen: agent };
}

function isKnown({ points, left = [] }: PointFileContent, { pending, wasActive }: Intent): boolean {
  return pending.what === 'create' ? points.some(({ id }) => id === pending.id) : left.includes(wasActive);
}
