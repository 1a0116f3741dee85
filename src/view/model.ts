import type { Histogram } from './histogram.js';

/**
 * What there is to see of a server's disks: made from what plain QMP answers (build.ts), drawn by text.ts and svg.ts,
 * counted by metrics.ts, planned with by plan/. All of it is JSON.
 */
export interface View {
  readonly server: Server;
  /** Every image, filter and group. Protocol nodes that only store an image's bytes are its `storage`. */
  readonly images: readonly Image[];
  /** One for each way down from the top: bases that are shared are in several. */
  readonly chains: readonly Chain[];
  readonly users: readonly User[];
  readonly jobs: readonly Job[];
  /** Names of jobs that may be over, and that new ones do not get, where somebody keeps them. */
  readonly pastJobs?: readonly string[];
}

export interface Server {
  /** As the server says it: `livedisk 0.1.0`, `QEMU 7.2.22`. */
  readonly name: string;
  /** Of the machine, as query-status says it; a storage daemon has none. */
  readonly runState?: string;
}

/** By the name that readServer (build.ts) gives. */
export function isLivedisk({ name }: Server): boolean {
  return name.startsWith('livedisk');
}

export interface Image {
  /** The node's name: what commands call it. */
  readonly id: string;
  /** What people call it: the node's name, or of a node that nobody named the file's. */
  readonly label: string;
  /** A group shows what several children hold (quorum). */
  readonly kind: 'image' | 'filter' | 'group';
  /** The top of the chain, of one that stands for layers of it that are not drawn (fold.ts). */
  readonly foldOf?: string;
  readonly driver: string;
  /** As the server has it: with what is below it and its options where it would not be opened as it is without (`json:`). */
  readonly filename: string;
  /** Who stores its bytes: a node of its own. */
  readonly storage?: { readonly id: string; readonly driver: string; readonly filename: string };
  readonly virtualBytes: number;
  readonly allocatedBytes?: number;
  readonly clusterBytes?: number;
  readonly isReadOnly: boolean;
  readonly isCorrupt: boolean;
  readonly isEncrypted: boolean;
  /** Nobody named it: a job's filter, a backing file that came with its overlay. */
  readonly isImplicit: boolean;
  readonly bitmaps: readonly Bitmap[];
  /** Internal ones. */
  readonly snapshotNames: readonly string[];
  /** By role; the first is what it shows. */
  readonly children: readonly Child[];
  /** Ids of images that it is the backing file of, past filters, whoever inserted them. */
  readonly overlays: readonly string[];
  /** What the machine tells of its file, where somebody looked (files.ts). */
  readonly file?: FileFacts;
  /** In sentences. */
  readonly warnings: readonly string[];
}

/** What holds its bytes, as people call it. */
export function fileNameOf({ filename, storage }: Pick<Image, 'filename' | 'storage'>): string {
  return (filename.startsWith('json:') && storage?.filename) || filename;
}

export interface FileFacts {
  /** Since the file was made, where its file system remembers, and since it was changed. */
  readonly ageSeconds?: number;
  readonly unchangedSeconds: number;
  /** Of its file system. */
  readonly freeBytes: number;
  readonly fileSystemBytes: number;
  /** By its locks, so many have it open who are not the server. */
  readonly otherHolders: number;
}

export interface Child {
  readonly role: string;
  readonly id: string;
}

export interface Bitmap {
  readonly name: string;
  readonly granularityBytes: number;
  readonly dirtyBytes: number;
  readonly isRecording: boolean;
  readonly isPersistent: boolean;
  readonly isBusy: boolean;
  readonly isInconsistent: boolean;
}

export interface Chain {
  /** Base first; filters are in it. */
  readonly images: readonly string[];
  /** Of what the chain's images occupy, 0 to 1, each image's part; beside `images`, 0 for filters. */
  readonly shares: readonly number[];
  /** Bytes of the disk that each image still provides, beside `images`: where a map of the disk told. */
  readonly provided?: readonly number[];
  /** The group whose child it is. */
  readonly group?: string;
}

export interface User {
  readonly id: string;
  readonly kind: 'device' | 'drive' | 'export' | 'other';
  /** A device's id, an export's. */
  readonly label: string;
  /** Missing when the drive is empty. */
  readonly imageId?: string;
  /** What commands that want a device take, where it has such a name. */
  readonly deviceName?: string;
  /** A device's id or path in the object tree, as commands on guests' devices take it. */
  readonly qdev?: string;
  /** BlockExportType of QMP. */
  readonly exportType?: string;
  readonly ioStatus?: string;
  readonly isWritable?: boolean;
  readonly statistics?: Statistics;
}

/** The BlockExportType whose exports need an NBD server. */
export const NBD_EXPORT = 'nbd';

/** Counted since the server started. */
export interface Statistics {
  readonly read: Operations;
  readonly write: Operations;
  readonly flush: Operations;
  readonly discard: Operations;
}

export interface Operations {
  readonly count: number;
  readonly bytes: number;
  readonly failed: number;
  readonly totalMs: number;
  /** By how long they took, where somebody asked the server to count. */
  readonly latencies?: Histogram;
}

/** What a job does to images: `from` flows into `to`. */
export interface Job {
  readonly id: string;
  readonly type: string;
  /** JobStatus of QMP. */
  readonly status: string;
  /** In words for people. */
  readonly phase: string;
  readonly from: readonly string[];
  readonly to?: string;
  /** In the unit of the job: bytes of the disk, for jobs on images. */
  readonly done: number;
  readonly total: number;
  /** 0 to 100, whole. */
  readonly percent: number;
  readonly speedLimit: number;
  readonly error?: string;
  readonly ioStatus?: string;
  /** What its state takes, as JobVerb of QMP. */
  readonly verbs: readonly string[];
  /** It is one on images, which `block-job-` commands know. */
  readonly isBlockJob: boolean;
  /** As the server tells, or since the last look but some (rates.ts). */
  readonly rate?: number;
  readonly secondsLeft?: number;
  /** Whether a mirror will be in step with its source, as the server tells. */
  readonly outlook?: string;
  /** Bytes a second that guests change again, as livedisk tells. */
  readonly dirtyRate?: number;
  /** Where it is, as livedisk tells: `copy`, `follow` ... */
  readonly stage?: string;
  /** Its phases that had something to do, as livedisk tells. */
  readonly stages?: readonly JobStage[];
}

/** A phase of a job (x-progress): bytes of the disk. */
export interface JobStage {
  readonly phase: string;
  readonly done: number;
  readonly left: number;
}

const indexes = new WeakMap<readonly Image[], ReadonlyMap<string, Image>>();

/** Images by their ids; lists of them do not change. */
export function byId(images: readonly Image[]): ReadonlyMap<string, Image> {
  const known = indexes.get(images);
  if (known) return known;
  const made = new Map<string, Image>();
  for (const image of images) if (!made.has(image.id)) made.set(image.id, image);
  indexes.set(images, made);
  return made;
}

export function imageOf({ images }: View, id: string | undefined): Image | undefined {
  return id === undefined ? undefined : byId(images).get(id);
}

/** What a node shows of its own accord: its backing file, or what a filter filters. */
export function below(image: Image): string | undefined {
  const [first] = image.children;
  return image.kind === 'group' ? undefined : first?.id;
}

/** A node and, as long as they are filters, what they show. */
export function pastFilters(id: string, images: ReadonlyMap<string, Image>): Set<string> {
  const passed = new Set<string>();
  for (let at: string | undefined = id; at !== undefined && !passed.has(at);) {
    passed.add(at);
    const image = images.get(at);
    at = image?.kind === 'filter' ? below(image) : undefined;
  }
  return passed;
}

/** The disk's images without what only shows others: as maps count the layers of a chain, the given one first. */
export function layersBelow(view: View, id: string): Image[] {
  const layers: Image[] = [];
  const seen = new Set<string>();
  for (let image = imageOf(view, id); image && !seen.has(image.id);) {
    seen.add(image.id);
    if (image.kind !== 'filter') layers.push(image);
    image = imageOf(view, below(image));
  }
  return layers;
}
