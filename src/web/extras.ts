import type { HostClock } from '../host/host.js';
import type { ClusterMap } from '../view/cluster-map.js';
import { withFiles } from '../view/files.js';
import { withMapOf } from '../view/live-map.js';
import { type FileFacts, imageOf, layersBelow, type View } from '../view/model.js';

/** What is not asked of each look. */
export interface ExtraSources {
  /** What this machine tells of the images' files, by the images' ids. */
  readonly lookAtFiles?: ((view: View) => Promise<ReadonlyMap<string, FileFacts>>) | undefined;
  /** Whose clusters an image's disk shows; undefined where nobody can tell. */
  readonly readMap: (view: View, id: string) => Promise<ClusterMap | undefined>;
}

const FILES_MS = 5000;
/** A map is read anew no sooner, and the reading takes no more than this part of the time. */
const MAP_MS = 3000;
const MOST_OF_TIME = 0.1;
/** With more disks, shares are those of space that is taken. */
const MOST_MAPS = 16;

interface KnownMap {
  /** What it was read of. */
  readonly signature: string;
  readonly map: ClusterMap | undefined;
}

/** Files and maps of one server's images, read beside the looks at it, within a budget of their own. */
export class Extras {
  readonly #clock: HostClock;
  readonly #sources: ExtraSources;
  #files: ReadonlyMap<string, FileFacts> = new Map();
  #filesDueMs = 0;
  #isReadingFiles = false;
  readonly #maps = new Map<string, KnownMap>();
  #mapsDueMs = 0;
  #isReading = false;

  constructor(clock: HostClock, sources: ExtraSources) {
    this.#clock = clock;
    this.#sources = sources;
  }

  /** The view with what is known by now; what is old is read anew, for a later view. */
  addTo(view: View): View {
    const nowMs = this.#clock.nowMs();
    if (!this.#isReadingFiles && nowMs >= this.#filesDueMs) void this.#readFiles(view, nowMs);
    const tops = topsOf(view);
    if (!this.#isReading && nowMs >= this.#mapsDueMs) void this.#readOneMap(view, tops);
    let made = view;
    for (const [id, layers] of tops) {
      const known = this.#maps.get(id);
      // Of other layers it says nothing.
      if (known?.map && known.signature.startsWith(`${layers} `)) made = withMapOf(made, id, known.map);
    }
    return withFiles(made, this.#files);
  }

  async #readFiles(view: View, nowMs: number): Promise<void> {
    this.#filesDueMs = nowMs + FILES_MS;
    this.#isReadingFiles = true;
    const read = this.#sources.lookAtFiles?.(view) ?? Promise.resolve(new Map<string, FileFacts>());
    this.#files = await read.catch(() => new Map<string, FileFacts>());
    this.#isReadingFiles = false;
  }

  /** Of the disks whose images have changed since, the one that waits longest. */
  async #readOneMap(view: View, tops: ReadonlyMap<string, string>): Promise<void> {
    for (const id of [...this.#maps.keys()]) if (!tops.has(id)) this.#maps.delete(id);
    if (tops.size > MOST_MAPS) return;
    const old = [...tops].find(
      ([id, layers]) => this.#maps.get(id)?.signature !== signatureOf(view, id, layers),
    );
    if (!old) return;
    const [id, layers] = old;
    this.#isReading = true;
    const beganMs = this.#clock.nowMs();
    const map = await this.#sources.readMap(view, id).catch(() => undefined);
    const tookMs = this.#clock.nowMs() - beganMs;
    this.#maps.delete(id);
    this.#maps.set(id, { signature: signatureOf(view, id, layers), map });
    const isMore = tops.size > 1 ? MAP_MS / tops.size : MAP_MS;
    this.#mapsDueMs = this.#clock.nowMs() + Math.max(isMore, tookMs / MOST_OF_TIME);
    this.#isReading = false;
  }
}

/** The topmost image of each chain, with the names of its layers. */
function topsOf(view: View): Map<string, string> {
  const tops = new Map<string, string>();
  for (const { images } of view.chains) {
    const top = images.findLast((id) => imageOf(view, id)?.kind === 'image');
    if (top !== undefined)
      tops.set(
        top,
        layersBelow(view, top)
          .map(({ id }) => id)
          .join(','),
      );
  }
  return tops;
}

/** Changes when a map may have. */
function signatureOf(view: View, id: string, layers: string): string {
  const sizes = layersBelow(view, id).map(
    ({ allocatedBytes = 0, virtualBytes }) => `${allocatedBytes}/${virtualBytes}`,
  );
  return `${layers} ${sizes.join(',')}`;
}
