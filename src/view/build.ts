import { type Answers, isLivedisk, numberOf, objectOf, textOf } from './answers.js';
import { readJobs } from './jobs.js';
import {
  below,
  type Chain,
  type FileFacts,
  type Image,
  type Job,
  pastFilters,
  type Server,
  type User,
  type View,
} from './model.js';
import { readGraph, readImages } from './nodes.js';
import { humanBytes } from './progress-meter.js';
import { readUsers } from './users.js';

/** More layers than this make every read slower, and a chain hard to oversee. */
const DEEP_CHAIN_LAYERS = 20;
/** A file system with less free than that, of all that it has, is nearly full. */
const NEARLY_FULL = 0.05;

/** What there is to see, of a server's answers. Broken answers give a poorer picture, never an error. */
export function buildView(answers: Answers): View {
  const graph = readGraph(answers);
  const bare = readImages(graph);
  const users = readUsers(answers, graph);
  const jobs = readJobs(answers, graph, bare);
  return assemble({ server: readServer(answers), images: bare, users, jobs });
}

/** Finds the chains of images, what stands on which, and what is known then. */
export function assemble(parts: Omit<View, 'chains'>): View {
  const bare = withOverlays(parts.images);
  const byId = new Map(bare.map((image) => [image.id, image]));
  const chains = readChains(byId, parts.users);
  const depths = new Map(chains.map((chain) => [chain.images.at(-1), layersOf(chain, byId)]));
  const images = bare.map((image) => {
    const warnings = warningsOf(image, depths.get(image.id) ?? 0, parts.users, parts.jobs);
    return { ...image, warnings };
  });
  return { ...parts, images, chains, jobs: parts.jobs.map((job) => baseFirst(job, chains)) };
}

function withOverlays(images: readonly Image[]): Image[] {
  const byId = new Map(images.map((image) => [image.id, image]));
  const overlays = new Map<string, Set<string>>();
  for (const { id: overlay, kind, children } of images) {
    if (kind === 'filter') continue;
    for (const { role, id } of children) {
      if (role !== 'backing') continue;
      for (const passed of pastFilters(id, byId))
        overlays.set(passed, (overlays.get(passed) ?? new Set()).add(overlay));
    }
  }
  return images.map((image) => ({ ...image, overlays: [...(overlays.get(image.id) ?? [])] }));
}

function readServer(answers: Answers): Server {
  const version = objectOf(answers['query-version']);
  const { major, minor, micro } = objectOf(version['qemu']);
  const package_ = textOf(version['package']) ?? '';
  const number = [major, minor, micro].map((part) => numberOf(part) ?? '?').join('.');
  const runState = textOf(objectOf(answers['query-status'])['status']);
  return {
    name: isLivedisk(answers) ? package_ : `QEMU ${number}`,
    ...(runState !== undefined && { runState }),
  };
}

/**
 * From each image that no other shows, down. Disks that guests use come first, in the order of their devices; a group's
 * children follow it.
 */
function readChains(images: ReadonlyMap<string, Image>, users: readonly User[]): Chain[] {
  const all = [...images.values()];
  const shown = new Set(all.flatMap((image) => below(image) ?? []));
  const inGroups = new Set(
    all.flatMap((image) => (image.kind === 'group' ? image.children.map(({ id }) => id) : [])),
  );
  const order = new Map([...users].reverse().map(({ imageId }, i) => [imageId, users.length - i]));
  const rank = ({ id }: Image): number => order.get(id) ?? users.length + 1;
  const chains: Chain[] = [];
  const add = (top: Image, group?: string): void => {
    const way = wayDown(top, images).reverse();
    chains.push({ images: way, shares: sharesOf(way, images), ...(group !== undefined && { group }) });
    const last = images.get(way[0] ?? '');
    if (last?.kind !== 'group' || chains.some((chain) => chain.group === last.id)) return;
    for (const { id } of last.children) {
      const child = images.get(id);
      if (child) add(child, last.id);
    }
  };
  const tops = all.filter(({ id }) => !shown.has(id) && !inGroups.has(id));
  for (const top of tops.sort((a, b) => rank(a) - rank(b))) add(top);
  return chains;
}

function wayDown(top: Image, images: ReadonlyMap<string, Image>): string[] {
  const way: string[] = [];
  for (let image: Image | undefined = top; image && !way.includes(image.id);) {
    way.push(image.id);
    image = images.get(below(image) ?? '');
  }
  return way;
}

function layersOf({ images }: Chain, byId: ReadonlyMap<string, Image>): number {
  return images.filter((id) => byId.get(id)?.kind === 'image').length;
}

function sharesOf(way: readonly string[], byId: ReadonlyMap<string, Image>): number[] {
  const bytes = way.map((id) => byId.get(id)?.allocatedBytes ?? 0);
  const all = bytes.reduce((sum, one) => sum + one, 0);
  return bytes.map((one) => (all === 0 ? 0 : one / all));
}

/** What flows, in the order of the chain that it is in. */
function baseFirst(job: Job, chains: readonly Chain[]): Job {
  const chain = chains.find(({ images }) => job.from.every((id) => images.includes(id)));
  if (!chain) return job;
  return { ...job, from: [...job.from].sort((a, b) => chain.images.indexOf(a) - chain.images.indexOf(b)) };
}

function warningsOf(image: Image, layers: number, users: readonly User[], jobs: readonly Job[]): string[] {
  const warnings: string[] = [];
  if (image.isCorrupt) warnings.push('is marked corrupt');
  if (layers > DEEP_CHAIN_LAYERS) warnings.push(`has a chain of ${layers} layers`);
  if (image.overlays.length > 1) warnings.push(`is the backing file of ${image.overlays.length} images`);
  if (image.file) warnings.push(...fileWarnings(image.file, image.isReadOnly));
  for (const { name, isInconsistent } of image.bitmaps)
    if (isInconsistent) warnings.push(`has the inconsistent bitmap ${name}`);
  for (const { imageId, label, ioStatus } of users)
    if (imageId === image.id && ioStatus !== undefined && ioStatus !== 'ok')
      warnings.push(`${label} met an error: ${ioStatus}`);
  for (const { to, id, ioStatus } of jobs)
    if (to === image.id && ioStatus !== undefined && ioStatus !== 'ok')
      warnings.push(`job ${id} met an error: ${ioStatus}`);
  return warnings;
}

/** Of a file that nobody writes to, it does not matter whether there is room. */
function fileWarnings(
  { freeBytes, fileSystemBytes, otherHolders }: FileFacts,
  isReadOnly: boolean,
): string[] {
  const warnings: string[] = [];
  if (!isReadOnly && freeBytes < NEARLY_FULL * fileSystemBytes)
    warnings.push(
      `is on a nearly full file system: ${humanBytes(freeBytes)} of ${humanBytes(fileSystemBytes)} free`,
    );
  if (otherHolders > 0)
    warnings.push(
      `is open elsewhere: ${otherHolders === 1 ? 'somebody else holds' : `${otherHolders} others hold`} a lock on it`,
    );
  return warnings;
}
