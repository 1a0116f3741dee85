import { assert, missing } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { ChangeGate } from './change-gate.js';
import { type ChainStatus, statusThroughChain, tryStatusThroughChain } from './chain-status.js';
import type { ChangeLog } from './change-log.js';
import type { DirtyBitmap } from './dirty-bitmap.js';
import type {
  BitmapStore,
  CacheSettings,
  DriverDescription,
  DriverInstance,
  GivenOptions,
  Settings,
} from './driver.js';
import type { BlockBackend } from './backend.js';
import type { Edge } from './edge.js';
import type { FormatGuard } from './format-guard.js';
import type { LayerMaps } from './layers/layer-maps.js';
import { type DetectZeroesMode, type NodeModes, PASSING_MODES } from './modes.js';
import { fullFilename } from './full-filename.js';
import { NodeIo } from './node-io.js';
import type { SideBitmap } from './side-bitmap.js';
import type { WriteHeat } from './write-heat.js';
import type { WriteThreshold } from './write-threshold.js';

export const DEFAULT_CACHE: CacheSettings = { direct: false, 'no-flush': false };

export interface NodeProperties {
  name: string;
  driver: DriverDescription;
  options?: GivenOptions;
  settings?: Settings;
  readOnly: boolean;
  /** Default: left to the nodes below. */
  modes?: NodeModes;
  /** Of a raw image whose format was guessed. */
  guard?: FormatGuard | undefined;
  /** Its content is not read. */
  onlyLook?: boolean;
  /** Added by the user (blockdev-add), who also removes it; else it goes with its last parent. */
  monitorOwned: boolean;
  /** A filter that a job put in: queries of the chain look through it. */
  implicit?: boolean;
  /** Another process owns the image (false). */
  inactive?: boolean;
}

/** How a node is open, as far as that can change. */
export interface NodeConfiguration {
  readonly options: GivenOptions;
  readonly settings: Settings;
  readonly modes: NodeModes;
  readonly readOnly: boolean;
}

/** One open image, device or filter in the graph. */
export class Node {
  readonly name: string;
  readonly driver: DriverDescription;
  /** What it was opened with as it was given, typed; its children are in the graph. */
  options: GivenOptions;
  /** The same with what is inherited and with the driver's defaults. */
  settings: Settings;
  readonly onlyLook: boolean;
  /** Set by the opener and graph transactions only, as `activity` is. */
  readOnly: boolean;
  modes: NodeModes;
  readonly guard: FormatGuard | undefined;
  monitorOwned: boolean;
  implicit: boolean;
  /** The node whose options brought it, as a child of it: what is not said of this one, that one says. */
  inheritsFrom: Node | undefined;
  /** Set: a filter of that job, in whose end its users and those of the node below use one node. */
  filterOwner: object | undefined;
  /**
   * Inactive: another process owns the image and may change it at any time. We hold no locks, have nothing that is not
   * on disk, and only read (block/activity).
   */
  activity: 'active' | 'inactive';
  /** On its way out of the graph: nobody may attach to it any more. */
  isClosing = false;
  /** A job copies or has copied to it, and nobody else has used it since: it need not be waited for at its end. */
  isCopy = false;
  /** Stands before every change, whoever makes it. Set and unset in drained sections, by the job whose source it is. */
  gate: ChangeGate | undefined;
  /** Of the graph that it is in. */
  layerMaps: LayerMaps | undefined;
  readonly children = new Map<string, Edge>();
  readonly parents = new Set<Edge>();
  /** Through which a job's filter uses more than its child: for the shape of the graph that is below it too. */
  readonly uses = new Set<BlockBackend>();
  readonly dirtyBitmaps: DirtyBitmap[] = [];
  /** Who counts where it is written to: nobody, unless somebody asked. */
  readonly heats: WriteHeat[] = [];
  /** Keeps a bitmap of it that its image cannot. */
  side: SideBitmap | undefined;
  /** Gone when it has been crossed. */
  writeThreshold: WriteThreshold | undefined;
  /** What the image says its backing file is, as opened last; differs from the graph only while a job runs. */
  backingFilename: string | undefined;
  backingFormat: string | undefined;
  /** Full name of the backing file that opening the image by its name brings; as far as known, the header's words. */
  automaticBacking: string | undefined;
  /** A change of that failed half-way: on disk the image may name another file (see backing-reference). */
  backingIsUncertain = false;
  /** Writable for a while only: see lent-writable.ts. */
  isLentWritable = false;
  /** A job has made it writable, and makes it read-only again when it ends. */
  isLentToJob = false;
  /** How users hear, once, of a file that ends before something that this image has in it. */
  onCutOff: (filename: string) => void = () => undefined;
  isCutOff = false;
  /** Highest offset written + 1, for query-blockstats. */
  highestWrittenOffset = 0;
  #wasResized = false;
  #instance: DriverInstance | undefined;
  #io: NodeIo | undefined;
  #quiesced = 0;
  /** The driver was told to come to rest, and not yet that it may go on. */
  #isToldToRest = false;
  #comingToRest = 0;
  #wake: () => void = () => undefined;
  #isClosed = false;
  readonly #blockers: string[] = [];

  constructor(properties: NodeProperties) {
    this.name = properties.name;
    this.driver = properties.driver;
    this.options = properties.options ?? {};
    this.settings = properties.settings ?? { cache: DEFAULT_CACHE };
    this.onlyLook = properties.onlyLook ?? false;
    this.readOnly = properties.readOnly;
    this.modes = properties.modes ?? PASSING_MODES;
    this.guard = properties.guard;
    this.monitorOwned = properties.monitorOwned;
    this.implicit = properties.implicit ?? false;
    this.activity = properties.inactive ? 'inactive' : 'active';
  }

  /** Called once, when the driver has opened. */
  opened(instance: DriverInstance): void {
    assert(!this.#instance, () => `node '${this.name}' opened twice`);
    this.#instance = instance;
    this.#io = new NodeIo(this, instance);
    if (this.#quiesced > 0) this.#comeToRest();
    this.#readBacking();
  }

  get configuration(): NodeConfiguration {
    const { options, settings, modes, readOnly } = this;
    return { options, settings, modes, readOnly };
  }

  /** For graph transactions only. */
  configure(configuration: NodeConfiguration): void {
    Object.assign(this, configuration);
    this.#io?.modesChanged();
  }

  /** A drive's word, no option of the node. */
  detectZeroes(detectZeroes: DetectZeroesMode): void {
    this.configure({ ...this.configuration, modes: { ...this.modes, detectZeroes } });
  }

  /** The driver has read the image anew, which another process may have changed; its length was `formerBytes`. */
  reopened(formerBytes: number): void {
    this.#readBacking();
    this.contentReplaced();
    if (this.lengthBytes !== formerBytes) this.resized();
  }

  /** Any of what the image has may be something else now. */
  contentReplaced(): void {
    this.layerMaps?.changed(this, 0, Infinity);
  }

  #readBacking(): void {
    const { filename, format } = this.instance.backing ?? {};
    if (filename !== this.backingFilename) this.automaticBacking = filename;
    this.backingFilename = filename;
    this.backingFormat = format;
  }

  /** Whether the image may be written at all. */
  get isWritable(): boolean {
    return !this.readOnly && this.activity === 'active';
  }

  get isOpen(): boolean {
    return this.#instance !== undefined;
  }

  get instance(): DriverInstance {
    return this.#instance ?? missing(`driver of node '${this.name}'`);
  }

  tellCutOff(filename: string): void {
    if (!this.isCutOff) this.onCutOff(filename);
    this.isCutOff = true;
  }

  get io(): NodeIo {
    return this.#io ?? missing(`driver of node '${this.name}'`);
  }

  get lengthBytes(): number {
    return this.instance.lengthBytes;
  }

  /** What every change goes through, since a bitmap is durable. */
  get changeLog(): ChangeLog | undefined {
    return this.side?.log ?? this.instance.changeLog;
  }

  /** Where its persistent bitmaps are kept. */
  get bitmapStore(): BitmapStore | undefined {
    return this.side ?? this.instance.bitmaps;
  }

  /** Full name, as the graph stands (block/full-filename); it takes a walk through all that is below. */
  get filename(): string {
    return fullFilename(this);
  }

  // ---- drain

  /** How many drained sections it is in; only they change it. */
  get quiesceCount(): number {
    return this.#quiesced;
  }

  /** The driver has been told to come to rest and has not done so yet. */
  get isComingToRest(): boolean {
    return this.#comingToRest > 0;
  }

  /** `wake` is called when the driver has come to rest, if it does not at once. */
  quiesce(wake: () => void): void {
    this.#wake = wake;
    this.#quiesced++;
    if (this.#quiesced === 1 && this.isOpen && !this.#isClosed) this.#comeToRest();
  }

  unquiesce(): void {
    assert(this.#quiesced > 0, () => `unbalanced drain of node '${this.name}'`);
    this.#quiesced--;
    if (this.#quiesced === 0) this.#goOn();
  }

  #comeToRest(): void {
    const { instance } = this;
    this.#isToldToRest = true;
    const resting = instance.drainBegin?.();
    if (!resting) return;
    this.#comingToRest++;
    // A driver that does not come to rest has failed; its requests will tell.
    void resting
      .catch(() => undefined)
      .then(() => {
        this.#comingToRest--;
        this.#wake();
      });
  }

  #goOn(): void {
    if (!this.#isToldToRest) return;
    this.#isToldToRest = false;
    this.instance.drainEnd?.();
  }

  /** Ends the driver. */
  async close(): Promise<void> {
    this.#goOn();
    this.#isClosed = true;
    for (const heat of [...this.heats]) heat.stop();
    this.#io?.forgetLayers();
    await this.instance.close();
  }

  /** Bytes that the image takes on its host; undefined where that is not known. */
  allocatedBytes(): number | undefined {
    return this.instance.allocatedBytes?.() ?? this.filtered?.node.allocatedBytes();
  }

  /** The drive whose medium it is; '' for none. */
  get driveName(): string {
    for (const { parent } of this.parents)
      if (!(parent instanceof Node) && parent.name !== '') return parent.name;
    return '';
  }

  /** How messages call it: by its drive, if it is one's medium. */
  get label(): string {
    return this.driveName || this.name;
  }

  get isFilter(): boolean {
    return this.driver.kind === 'filter';
  }

  child(role: string): Edge {
    return this.children.get(role) ?? missing(`${role} child of node '${this.name}'`);
  }

  /** The next layer down: a filter's filtered child, else the backing file. */
  get below(): Edge | undefined {
    return this.isFilter ? this.filtered : this.children.get('backing');
  }

  /** The child that a filter shows. */
  get filtered(): Edge | undefined {
    return this.children.get('file') ?? this.children.get('image') ?? this.children.get('raw');
  }

  /** What its bytes are stored in: the protocol at the bottom. */
  get storage(): Node {
    let at = this as Node;
    for (let edge = at.filtered; edge; edge = at.filtered) at = edge.node;
    return at;
  }

  /** See ChildIo. */
  get hasFixedLength(): boolean {
    return this.instance.hasFixedLength ?? this.filtered?.node.hasFixedLength ?? false;
  }

  /** This node, or what it filters, down to the first that is no filter. */
  skipFilters(): Node {
    let at = this as Node;
    while (at.isFilter && at.filtered) at = at.filtered.node;
    return at;
  }

  /** The same, but only through filters that jobs put in. */
  skipImplicitFilters(): Node {
    let at = this as Node;
    while (at.implicit && at.filtered) at = at.filtered.node;
    return at;
  }

  /** The next non-filter layer below this one, or undefined at the base. */
  backingNode(): Node | undefined {
    return this.skipFilters().children.get('backing')?.node.skipFilters();
  }

  /** This node and all below it in the chain, filters included, top first. */
  *chain(): Generator<Node> {
    for (let at: Node | undefined = this; at; at = at.below?.node) yield at;
  }

  isAbove(other: Node): boolean {
    if (this === other) return false;
    for (const node of this.chain()) if (node === other) return true;
    return false;
  }

  /**
   * Status of the first stretch at offset through the chain, down to and including `last` (default: the base).
   * Not allocated down to there: allocated false; zero when nothing is below. A promise only where it must wait.
   */
  statusThroughChain(offset: number, lengthBytes: number, last?: Node): ChainStatus | Promise<ChainStatus> {
    return statusThroughChain(this, offset, lengthBytes, last);
  }

  /** The same, maybe of a shorter stretch, where no wait is needed; else undefined. */
  tryStatusThroughChain(offset: number, lengthBytes: number, last?: Node): ChainStatus | undefined {
    return tryStatusThroughChain(this, offset, lengthBytes, last);
  }

  /** A write is about to be made. */
  beginWrite(offset: number, lengthBytes: number): void {
    const { writeThreshold } = this;
    if (writeThreshold?.isCrossed(offset + lengthBytes) === true) this.writeThreshold = undefined;
  }

  markDirty(offset: number, lengthBytes: number): void {
    const end = offset + lengthBytes;
    if (end > this.highestWrittenOffset) this.highestWrittenOffset = end;
    for (const bitmap of this.dirtyBitmaps)
      if (bitmap.enabled && !bitmap.successor) bitmap.set(offset, lengthBytes);
  }

  /** markDirty() of what was written, not zeroed or discarded. */
  markWritten(offset: number, lengthBytes: number): void {
    this.markDirty(offset, lengthBytes);
    if (this.heats.length > 0) for (const heat of this.heats) heat.written(offset, lengthBytes);
  }

  /** Whether anything has been changed through it, or through what it is stored in, since it was opened. */
  get wasChanged(): boolean {
    if (this.highestWrittenOffset > 0 || this.#wasResized) return true;
    return [...this.children].some(([role, { node }]) => role !== 'backing' && node.wasChanged);
  }

  /** After a truncate. */
  resized(): void {
    this.#wasResized = true;
    this.contentReplaced();
    for (const bitmap of this.dirtyBitmaps) bitmap.resize(this.lengthBytes);
    for (const heat of this.heats) heat.resized();
    for (const parent of this.parents) parent.parent.childResized();
  }

  /** As a parent: a child's size changed; matters to filters, whose size is their child's. */
  childResized(): void {
    if (this.isFilter || this.driver.followsChildSize === true) this.resized();
  }

  findBitmap(name: string): DirtyBitmap | undefined {
    return this.dirtyBitmaps.find((bitmap) => bitmap.name === name);
  }

  /** Refuses operations that would disturb a user; call the answer to end it. */
  addBlocker(reason: string): () => void {
    this.#blockers.push(reason);
    return () => {
      const index = this.#blockers.indexOf(reason);
      assert(index >= 0, 'blocker removed twice');
      this.#blockers.splice(index, 1);
    };
  }

  get isBlocked(): boolean {
    return this.#blockers.length > 0;
  }

  /** Throws kind 'busy' in QEMU's words when someone blocks the node, 'not-found' when a job's end has closed it. */
  assertNotBlocked(): void {
    if (this.isClosing) {
      throw new BlockError('not-found', `Cannot find device='' nor node-name='${this.name}'`, {
        node: this.name,
      });
    }
    const reason = this.#blockers.at(-1);
    if (reason === undefined) return;
    throw new BlockError('busy', `Node '${this.label}' is busy: ${reason}`, { node: this.name });
  }

  /** How permission conflicts name this node as a parent. */
  describe(): string {
    return `node '${this.name}'`;
  }
}
