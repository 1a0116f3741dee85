import { isDeepStrictEqual } from 'node:util';
import { assert } from '../../base/assert.js';
import { BlockError, errnoError, toBlockError } from '../../base/error.js';
import type { ChangeLog } from '../../block/change-log.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type {
  BitmapStore,
  CompactOptions,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  FileUse,
  ImageAmendment,
  ImageCheck,
  ImageCompaction,
  KeySlotAmendment,
  Preallocated,
  PreparedChange,
  PreparedReopening,
  Reopening,
  RepairMode,
  Settings,
} from '../../block/driver.js';
import { QCOW2_OPTIONS } from '../../schema/blockdev-options.js';
import { LUKS_AMEND_NAMES } from '../../schema/encryption-options.js';
import { QCOW2_CREATE } from '../../schema/create-options.js';
import { planRepairs } from './check/check.js';
import { applyRepairs } from './check/repair.js';
import { compactImage } from './compact/compact.js';
import { hasOutdatedBitmaps } from './features/bitmap-directory.js';
import { amendKeySlots } from '../encryption/key-slots.js';
import { keySlotVolume, ImageKey } from './features/encryption.js';
import { amendImage } from './features/amend.js';
import { changeBacking } from './features/backing.js';
import { imageInfo } from './image-info.js';
import { Qcow2Snapshots } from './image-snapshots.js';
import { createQcow2, TOO_LARGE_TEXT } from './create.js';
import type { LuksVolume } from '../encryption/luks-volume.js';
import { checkNewImage, QCOW2_TOOL_OPTIONS } from './create-options.js';
import { Incompatible, MAGIC } from './disk/layout.js';
import { checkVersion, discardSettings } from './discards.js';
import { fileUse } from './space/file-use.js';
import { measureQcow2 } from './measure.js';
import { dataFileOf } from './disk/header.js';
import { readHeader } from './image.js';
import { cacheSizes } from './tables/cache-sizes.js';
import { moderniseOverlapCheck, uncheckedStructures } from './tables/overlap-checks.js';
import { OpenImage, type OpenSettings } from './open-image.js';
import { asReader, withFile } from './surroundings.js';
import { Qcow2Map } from './map-driver.js';
import { preallocate } from './mapping/preallocate.js';
import { resizeImage } from './mapping/resize.js';
import { unallocateClusters } from './mapping/zeroing.js';

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

function openSettings(settings: Settings<typeof QCOW2_OPTIONS>): OpenSettings {
  return {
    ...cacheSizes(settings),
    key: new ImageKey(settings.encrypt),
    discards: discardSettings(settings),
    unchecked: uncheckedStructures(settings),
  };
}

/** Opens an image; one that its last user did not close is repaired first where it may be written. */
async function openSound(driver: DriverContext, sizes: OpenSettings): Promise<OpenImage> {
  const image = await OpenImage.open(driver, sizes, driver.mayWrite);
  if (!image.context.isDirty || !driver.mayWrite || driver.forCheck) return image;
  try {
    const plan = await planRepairs(image.context.meta, 'all', (line) => driver.tell(line));
    if (plan.result.checkErrors > 0) throw errnoError('EIO');
    await applyRepairs(image, plan);
  } catch (error) {
    const { kind, message } = toBlockError(error);
    throw new BlockError(kind, `Could not repair dirty image: ${message}`, { cause: error });
  }
  return OpenImage.open(driver, sizes, driver.mayWrite);
}

/** Bitmaps of an image that is ours: see ImageBitmaps.load. */
async function loadBitmaps(
  driver: DriverContext,
  image: OpenImage,
  { isComplete }: { isComplete: boolean },
): Promise<DirtyBitmap[]> {
  return driver.loadsBitmaps ? image.bitmaps.load(isComplete) : [];
}

function addBitmaps(
  { dirtyBitmaps }: DriverContext,
  loaded: readonly DirtyBitmap[],
  mayWrite: boolean,
): void {
  for (const bitmap of loaded) bitmap.readOnly = !mayWrite;
  dirtyBitmaps.push(...loaded);
}

function markReadOnly({ dirtyBitmaps }: DriverContext, readOnly: boolean): void {
  for (const bitmap of dirtyBitmaps) if (bitmap.persistent) bitmap.readOnly = readOnly;
}

function outdatedBitmaps({ version }: { version: number }): string {
  const what =
    version < 3
      ? 'This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap ' +
        'support; so now they must all be considered inconsistent'
      : 'a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent';
  return `${what}\nSome clusters may be leaked, run 'qemu-img check -r' on the image file to fix.`;
}

async function openNode(driver: DriverContext, sizes: OpenSettings): Promise<Qcow2Instance> {
  const image = await openSound(driver, sizes);
  if (hasOutdatedBitmaps(image.context.header)) driver.warn(outdatedBitmaps(image.context.header));
  const loaded = driver.isActive ? await loadBitmaps(driver, image, { isComplete: true }) : [];
  addBitmaps(driver, loaded, driver.mayWrite);
  // Whoever finds it after a crash is not to believe them, whether or not anything was changed, as in QEMU.
  if (driver.mayWrite && image.saysTooMuch && driver.host.passing?.isTaking !== true)
    await image.context.beginChanges();
  return new Qcow2Instance(driver, image, sizes);
}

/** One open qcow2 node. */
class Qcow2Instance implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  /** It has its size in its header, and does not grow by being written. */
  readonly hasFixedLength = true;
  readonly map: Qcow2Map;
  readonly snapshots: Qcow2Snapshots;
  #driver: DriverContext;
  #sizes: OpenSettings;

  constructor(driver: DriverContext, image: OpenImage, sizes: OpenSettings) {
    this.map = new Qcow2Map(image);
    this.#driver = driver;
    this.#sizes = sizes;
    this.snapshots = new Qcow2Snapshots(this.map, async (shown) => {
      await this.#writeAllBack();
      return OpenImage.open(asReader(this.#driver), this.#sizes, false, shown);
    });
  }

  #image(): OpenImage {
    return this.map.image;
  }

  get lengthBytes(): number {
    return this.#image().context.header.sizeBytes;
  }

  get backing(): { filename: string; format?: string } | undefined {
    return this.#image().context.header.backing;
  }

  get canWriteZeroes(): boolean {
    return this.#image().context.header.version >= 3;
  }

  /** Clusters that were made with the image are encrypted zeroes at most, and in a data file what that had before. */
  get readsZeroWhenNew(): boolean {
    const { context, tables } = this.#image();
    const isFilled = context.encryption !== undefined || context.l2.hasDataFile;
    return this.backing === undefined && (!isFilled || tables.isAbsent(0));
  }

  async flush(): Promise<void> {
    const { context, writeBack } = this.#image();
    await context.marked();
    // What may not be written has nothing to write: skipping it would lose it in silence.
    assert(context.mayWrite || !writeBack.isDirty, 'an image that may not be written is not dirty');
    if (context.mayWrite) await writeBack.flush();
  }

  get bitmaps(): BitmapStore {
    return this.#image().bitmaps;
  }

  get changeLog(): ChangeLog | undefined {
    return this.map.image.bitmaps.changeLog;
  }

  drainBegin(): Promise<void> | undefined {
    return this.changeLog?.rest();
  }

  drainEnd(): void {
    this.changeLog?.goOn();
  }

  async truncate(lengthBytes: number): Promise<void> {
    const oldBytes = this.lengthBytes;
    await resizeImage(this.#image(), lengthBytes);
    // What the data file holds is the disk's, as in new images.
    if (this.#image().context.isDataFileRaw && lengthBytes > oldBytes)
      await this.preallocate(oldBytes, lengthBytes, 'metadata');
  }

  preallocate(from: number, end: number, mode: Preallocated): Promise<void> {
    return preallocate(this.#image(), from, end, mode);
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    await changeBacking(this.#image().context, filename, format);
  }

  async makeEmpty(): Promise<void> {
    await unallocateClusters(this.#image(), 0, this.lengthBytes);
    await this.flush();
  }

  async amend({ keySlots, resize, ...changes }: ImageAmendment): Promise<void> {
    const volume = keySlots && keySlotVolume(this.#image().context.encryption);
    await this.#writeAllBack();
    await amendImage(this.#image(), changes, {
      keySlots: async () => volume && keySlots && this.#amendKeySlots(volume, keySlots),
      resize: async () => resize?.(),
    });
  }

  async #amendKeySlots(volume: LuksVolume, keySlots: KeySlotAmendment): Promise<void> {
    const openedWith = this.#sizes.key.options?.['key-secret'];
    const secretOf = (id: string): Uint8Array => this.#driver.objects.secret(id);
    await amendKeySlots(volume, { ...keySlots, secretOf, openedWith });
  }

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    const setBitmaps = (): void => markReadOnly(this.#driver, readOnly);
    if (readOnly) return this.#prepareNoWrites(setBitmaps);
    const image = this.#image();
    image.context.checkWritable();
    image.context.checkClean();
    const commit = (): void => {
      image.becomesWritable();
      setBitmaps();
    };
    return { commit, abort: () => undefined };
  }

  /** A write-back frees clusters at its end, which the next one brings to disk. Then refcounts are right. */
  async #writeAllBack(): Promise<void> {
    const { context, writeBack } = this.#image();
    do await this.flush();
    while (writeBack.isDirty);
    if (context.mayWrite && context.isSound && !context.staysDirty)
      await context.clearIncompatible(Incompatible.dirty);
  }

  /** All that the node has in memory, and that outlives it, is in the image; durable on return. */
  async #storeAll(): Promise<void> {
    const image = this.#image();
    await image.context.hasBegun();
    await this.#writeAllBack();
    await image.bitmaps.store();
    await this.#writeAllBack();
  }

  /** For the time when nothing may be written. */
  async #prepareNoWrites(begin: () => void): Promise<PreparedChange> {
    await this.#storeAll();
    const { writeBack } = this.#image();
    const commit = (): void => {
      assert(!writeBack.isDirty, 'nothing is written while an image stops being ours');
      begin();
    };
    return { commit, abort: () => undefined };
  }

  /** What was not said while another process might have the image still. */
  own(): void {
    const { context, saysTooMuch } = this.#image();
    // Else it is said before the first change, which fails where this does.
    if (context.mayWrite && saysTooMuch) void context.beginChanges().catch(() => undefined);
  }

  /** Bitmaps that are in the image go with it. */
  prepareInactivation(): Promise<PreparedChange> {
    return this.#prepareNoWrites(() => {
      const { dirtyBitmaps } = this.#driver;
      const kept = dirtyBitmaps.filter(({ persistent, isGivenAway }) => !persistent || isGivenAway);
      dirtyBitmaps.splice(0, dirtyBitmaps.length, ...kept);
      this.#image().bitmaps.abandon();
    });
  }

  /** Everything is read anew; the image that was open until then answers until commit. */
  async prepareActivation(mayWrite: boolean): Promise<PreparedChange> {
    let image: OpenImage;
    let loaded: DirtyBitmap[];
    try {
      image = await OpenImage.open(this.#driver, this.#sizes, mayWrite);
      if (mayWrite) image.context.checkClean();
      loaded = await loadBitmaps(this.#driver, image, { isComplete: true });
    } catch (error) {
      const { kind, message } = toBlockError(error);
      throw new BlockError(kind, `Could not reopen qcow2 layer: ${message}`, { cause: error });
    }
    const commit = (): void => {
      this.#image().bitmaps.abandon();
      this.map.image = image;
      addBitmaps(this.#driver, loaded, mayWrite);
      if (mayWrite && image.bitmaps.hasUnknownFeatures) this.own();
    };
    return { commit, abort: () => undefined };
  }

  /** Another file, or caches of other sizes: the image is opened anew. */
  async prepareReopen(reopening: Reopening<typeof QCOW2_OPTIONS>): Promise<PreparedReopening> {
    const { settings, readOnly, mayWrite } = reopening;
    checkVersion(settings, this.#image().context.header.version);
    const sizes = openSettings(settings);
    const file = reopening.newChild('file');
    const isAlike = isDeepStrictEqual(sizes, this.#sizes);
    if (file === undefined && isAlike)
      return readOnly === this.#driver.readOnly ? NOTHING : this.prepareReadOnly(readOnly);
    // What is not stored now goes on in memory, and is stored later.
    await (file || !mayWrite ? this.#storeAll() : this.#writeAllBack());
    const driver = file ? withFile(this.#driver, file) : this.#driver;
    const image = await OpenImage.open(driver, sizes, mayWrite);
    if (mayWrite) image.context.checkClean();
    const loaded = driver.isActive ? await loadBitmaps(driver, image, { isComplete: false }) : [];
    return {
      lengthBytes: image.context.header.sizeBytes,
      commit: () => {
        this.#image().bitmaps.abandon();
        this.map.image = image;
        this.#driver = driver;
        this.#sizes = sizes;
        markReadOnly(driver, !mayWrite);
        addBitmaps(driver, loaded, mayWrite);
      },
      abort: () => undefined,
    };
  }

  async check(repair: RepairMode, say: (line: string) => void): Promise<ImageCheck> {
    await this.#writeAllBack();
    const { context } = this.#image();
    const plan = await planRepairs(context.meta, repair, say);
    if (repair === 'none') return plan.result;
    context.assertMayRepair();
    await this.#throughOthers(async (open) => applyRepairs(await open(), plan));
    // All that could be mended is: what is left is not the refcounts.
    if (repair === 'all') this.#image().context.staysDirty = false;
    return plan.result;
  }

  /**
   * `change` changes the image through others, which it opens. What was in memory is not the image any more: it is opened
   * anew, also where that fails half-way.
   */
  async #throughOthers<T>(change: (open: () => Promise<OpenImage>) => Promise<T>): Promise<T> {
    const open = (): Promise<OpenImage> => OpenImage.open(this.#driver, this.#sizes, true);
    this.#image().context.isSuperseded = true;
    try {
      const result = await change(open);
      this.map.image = await open();
      return result;
    } catch (error) {
      const image = await open().catch(() => undefined);
      if (image) this.map.image = image;
      throw error;
    }
  }

  fileUse(): Promise<FileUse> {
    return fileUse(this.#image());
  }

  async compact(options: CompactOptions): Promise<ImageCompaction> {
    await this.#writeAllBack();
    if (options.isDryRun !== true) return this.#throughOthers((open) => compactImage(open, options));
    return compactImage(() => OpenImage.open(this.#driver, this.#sizes, false), options);
  }

  info(): DriverInfo {
    return imageInfo(this.#image());
  }

  /** Errors: what could not be written, and how much is lost by that. */
  async close(): Promise<void> {
    const { bitmaps, context, tables, writeBack } = this.#image();
    await context.hasBegun();
    try {
      await this.#writeAllBack();
    } catch (error) {
      tables.cache.leaveBudget();
      throw writeBack.lossError(error);
    }
    try {
      await bitmaps.store();
      await this.#writeAllBack();
    } catch (error) {
      const { kind, message } = toBlockError(error);
      const text = `Lost persistent bitmaps during inactivation of node '${this.#driver.nodeName}': ${message}`;
      this.#driver.warn(text);
      throw new BlockError(kind, text, { cause: error });
    } finally {
      bitmaps.abandon();
      tables.cache.leaveBudget();
    }
  }
}

/** The qcow2 format: versions 2 and 3 (README.md says what is refused). */
export const qcow2Driver: DriverDescription<typeof QCOW2_OPTIONS, typeof QCOW2_CREATE> = {
  name: 'qcow2',
  opensWithoutWriting: true,
  kind: 'format',
  options: QCOW2_OPTIONS,
  identityOptions: ['encrypt'],
  mutableOptions: Object.keys(QCOW2_OPTIONS.members),
  /** A name may say the secret alone. */
  modernise: (options) => {
    if (options.has('encrypt.key-secret') && !options.has('encrypt.format'))
      options.put('encrypt.format', 'luks');
    moderniseOverlapCheck(options);
  },
  amendOptions: LUKS_AMEND_NAMES.map((name) => `encrypt.${name}`),
  compresses: true,
  /** As QEMU's, its name is seen from where the program is. */
  async namedFiles(context) {
    const { parsed } = await readHeader(context.child('file'), context.forCheck);
    const filename = dataFileOf(parsed)?.name;
    return filename === undefined
      ? []
      : [{ role: 'data-file', filename, what: 'data file', isFromHere: true }];
  },
  async open(context, settings) {
    const node = await openNode(context, openSettings(settings));
    try {
      checkVersion(settings, node.map.image.context.header.version);
    } catch (error) {
      await node.close();
      throw error;
    }
    return node;
  },
  /** Version 1 is another format, qcow. */
  probe: (header) =>
    header.length >= 8 && header.readUInt32BE(0) === MAGIC && header.readUInt32BE(4) >= 2 ? 100 : 0,
  createOptions: QCOW2_CREATE,
  toolOptions: QCOW2_TOOL_OPTIONS,
  tooLargeText: TOO_LARGE_TEXT,
  dataFileOption: 'data-file',
  checkNew: checkNewImage,
  measure: measureQcow2,
  create: (file, image, host, context) =>
    createQcow2(file, image, context && { host, secret: (id) => context.secret(id) }),
};
