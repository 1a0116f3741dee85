import { posix } from 'node:path';
import { BlockError } from '../base/error.js';
import { FlatOptions } from '../schema/flat.js';
import { folderOf, hasProtocol } from './filename.js';
import { fullFilename, resolveBackingOf } from './full-filename.js';
import { Graph } from './graph.js';
import type { Node } from './node.js';
import { parseJsonName } from './node-plan.js';
import { Opener } from './open.js';

/** Most names of a folder that are looked at: a look takes about a millisecond. */
const MAX_LOOKED_FILES = 10_000;

/** Who else stands on what a commit changes. */
export interface Sharer {
  /** The image's file, or its name where it has none here. */
  readonly image: string;
  /** The image of the chain that it names as its backing file. */
  readonly base: string;
}

/** What is committed into what, in the chain of `device`. */
export interface CommitEnds {
  readonly device: Node;
  readonly top: Node;
  readonly base: Node;
}

/** Whether a commit asks who shares its base, and what it does then. */
export interface BaseProtection {
  /** Refuses the commit; else they are only told. */
  readonly refuses: boolean;
  /** Besides those of the chain. */
  readonly folders: readonly string[];
}

/**
 * Images that a commit of `top` into `base` would make show what is not theirs: they name as backing file the base, or a
 * layer above it that goes, and are not of this chain. Looked for in the folders of the chain's images, in `folders`, and
 * among what is open in this graph. A file that cannot be read or is no image is passed over. Errors: limit for a folder of
 * too many names; not-found for one of `folders` that is not there.
 */
export async function findSharers(
  opener: Opener,
  nodes: CommitEnds,
  folders: readonly string[] = [],
): Promise<Sharer[]> {
  const search = await SharerSearch.of(opener, nodes);
  search.lookAtGraph();
  for (const folder of new Set([...search.chainFolders, ...folders])) await search.lookInto(folder);
  return search.found;
}

/** In words, for a refusal and a warning. */
export function sharersText(sharers: readonly Sharer[]): string {
  const names = sharers.map(({ image, base }) => `'${image}' (on '${base}')`).join(', ');
  return `a commit changes what other images show: ${names}`;
}

/** Errors: busy, with the names of the images, where the protection refuses. Answers what is to be told. */
export async function checkSharers(
  opener: Opener,
  nodes: CommitEnds,
  { refuses, folders }: BaseProtection,
): Promise<string | undefined> {
  const sharers = await findSharers(opener, nodes, folders);
  if (sharers.length === 0) return undefined;
  if (refuses) throw new BlockError('busy', `Shared bases are protected: ${sharersText(sharers)}`);
  return sharersText(sharers);
}

class SharerSearch {
  readonly found: Sharer[] = [];
  readonly #opener: Opener;
  /** Of which other images may not be overlays: the base and what goes. */
  readonly #changed: ReadonlySet<Node>;
  /** By what HostStat calls their identity. */
  readonly #changedFiles = new Map<string, string>();
  readonly #ownFiles = new Set<string>();
  /** The chain, and whatever else stands on the top here: its header will name the base, and it shows what it did. */
  readonly #own: ReadonlySet<Node>;
  readonly #layers: readonly Node[];

  private constructor(opener: Opener, { device, top, base }: CommitEnds) {
    this.#opener = opener;
    const layers = layersOf(device);
    this.#layers = layers;
    const standsOnTop = (node: Node): boolean => !node.isFilter && node.backingNode() === top.skipFilters();
    this.#own = new Set([...layers, ...[...opener.graph.nodes.values()].filter(standsOnTop)]);
    const below = layers.slice(layers.indexOf(top.skipFilters()) + 1);
    this.#changed = new Set(below.slice(0, below.indexOf(base.skipFilters()) + 1));
  }

  static async of(opener: Opener, nodes: CommitEnds): Promise<SharerSearch> {
    const search = new SharerSearch(opener, nodes);
    for (const node of search.#own) {
      const path = pathOf(node);
      const identity = path === undefined ? undefined : await search.#identityOf(path);
      if (path === undefined || identity === undefined) continue;
      search.#ownFiles.add(identity);
      if (search.#changed.has(node)) search.#changedFiles.set(identity, path);
    }
    return search;
  }

  get chainFolders(): string[] {
    return this.#layers.flatMap((node) => {
      const path = pathOf(node);
      return path === undefined ? [] : [folderOf(path) || '.'];
    });
  }

  /** What is open here, wherever it lies. */
  lookAtGraph(): void {
    for (const node of this.#opener.graph.nodes.values()) {
      const below = node.isFilter ? undefined : node.backingNode();
      if (!below || this.#own.has(node) || !this.#changed.has(below)) continue;
      this.#add(pathOf(node) ?? node.name, pathOf(below) ?? below.name);
    }
  }

  async lookInto(folder: string): Promise<void> {
    const found = await imagesOn(this.#opener, folder, this.#changedFiles, this.#ownFiles);
    for (const { image, base } of found) this.#add(image, base);
  }

  #add(image: string, base: string): void {
    if (!this.found.some((sharer) => sharer.image === image)) this.found.push({ image, base });
  }

  async #identityOf(path: string): Promise<string | undefined> {
    return (await this.#opener.host.files.stat(path).catch(() => undefined))?.identity;
  }
}

/**
 * Images of a folder that name one of `bases` (paths, by what HostStat calls identity) as backing file, those of the
 * identities `except` left out. What cannot be read may be one: it is passed over, or counts. Errors: limit, not-found.
 */
export async function imagesOn(
  opener: Opener,
  folder: string,
  bases: ReadonlyMap<string, string>,
  except: ReadonlySet<string>,
  unreadable: 'passes' | 'counts' = 'passes',
): Promise<Sharer[]> {
  const { files } = opener.host;
  const names = await files.list(folder);
  if (names.length > MAX_LOOKED_FILES)
    throw new BlockError('limit', `'${folder}' has ${names.length} files: too many to look at`);
  const found: Sharer[] = [];
  for (const image of names.sort().map((name) => posix.join(folder, name))) {
    const stat = await files.stat(image).catch(() => undefined);
    if (!stat || stat.isDirectory || stat.isBlockDevice || stat.isSpecial !== 'no') continue;
    if (except.has(stat.identity)) continue;
    const header = await lookAtHeader(opener, image).catch(() => 'unreadable' as const);
    const [first] = bases.values();
    if (header === 'unreadable') {
      if (unreadable === 'counts' && first !== undefined) found.push({ image, base: first });
      continue;
    }
    for (const backing of header?.backing ?? []) {
      const base = bases.get((await files.stat(backing).catch(() => undefined))?.identity ?? '');
      if (base !== undefined) found.push({ image, base });
    }
  }
  return found;
}

interface Header {
  readonly format: string;
  /** The files that it may mean. */
  readonly backing: string[];
}

/** What an image's header says; undefined for what is no image of a format with backing files, or cannot be read. */
export function readHeader(opener: Opener, path: string): Promise<Header | undefined> {
  return lookAtHeader(opener, path).catch(() => undefined);
}

/** The same. Errors: those of opening. */
async function lookAtHeader({ host, drivers }: Opener, path: string): Promise<Header | undefined> {
  const opener = new Opener(new Graph(host), drivers);
  let node: Node | undefined;
  try {
    const format = await opener.probeFormat(path);
    if (!drivers.get(format).options.backing) return undefined;
    const look = { readOnly: true, forceShare: true, onlyLook: true, noBacking: true };
    const image = await opener.openImage(path, format, look);
    node = image;
    const { backingFilename } = image;
    if (backingFilename === undefined) return { format, backing: [] };
    return { format, backing: filesNamed(backingFilename).map((name) => resolveBackingOf(image, name)) };
  } finally {
    if (node) await opener.graph.release([node]);
  }
}

/** The layers of a chain, top first. */
function layersOf(device: Node): Node[] {
  const layers: Node[] = [];
  for (let at: Node | undefined = device.skipFilters(); at; at = at.backingNode()) layers.push(at);
  return layers;
}

/** Of an image in a file of this machine. */
function pathOf(node: Node): string | undefined {
  const path = fullFilename(node.storage);
  return node.storage.driver.hasFolders === true && !hasProtocol(path) ? path : undefined;
}

/** Paths in a backing file's name: itself, or what `json:` and `file:` names have in them. */
function filesNamed(name: string): string[] {
  if (name.startsWith('file:')) return [name.slice('file:'.length)];
  if (!name.startsWith('json:')) return hasProtocol(name) ? [] : [name];
  const options = FlatOptions.of(parseJsonName(name)).entries();
  return options.flatMap(([key, value]) =>
    /(^|\.)filename$/.test(key) && typeof value === 'string' && !hasProtocol(value) ? [value] : [],
  );
}
