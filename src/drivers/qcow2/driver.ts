import { isDeepStrictEqual } from 'node:util';
import { alignUp } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import { BlockError, errnoError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { ChangeLog } from '../../block/change-log.js';
import type { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type {
  BitmapStore,
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  ImageAmendment,
  ImageCheck,
  KeySlotAmendment,
  Json,
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
import { hasOutdatedBitmaps } from './features/bitmap-directory.js';
import { amendKeySlots } from '../encryption/key-slots.js';
import { ImageKey } from './features/encryption.js';
import { amendImage } from './features/amend.js';
import { changeBacking } from './features/backing.js';
import { Qcow2Snapshots } from './image-snapshots.js';
import { createQcow2 } from './create.js';
import { checkNewImage, QCOW2_TOOL_OPTIONS } from './create-options.js';
import { COMPATIBLE_LAZY_REFCOUNTS, ENTRY_BYTES, Incompatible, MAGIC } from './disk/layout.js';
import { measureQcow2 } from './measure.js';
import { snapshotInfo } from './disk/snapshots.js';
import { dataFileOf, type Header } from './disk/header.js';
import { readHeader } from './image.js';
import { cacheSizes } from './tables/cache-sizes.js';
import { OpenImage, type OpenSettings } from './open-image.js';
import { Qcow2Map } from './map-driver.js';
import { resizeImage } from './mapping/resize.js';
import { unallocateClusters } from './mapping/zeroing.js';

/** The same surroundings, but for that child. */
function withFile(context: DriverContext, file: ChildIo): DriverContext {
  return Object.create(context, {
    child: { value: (role: string) => (role === 'file' ? file : context.child(role)) },
  }) as DriverContext;
}

/** The same for an image that is only looked at beside the one that may be written. */
function asReader(context: DriverContext): DriverContext {
  return Object.create(context, { mayWrite: { value: false } }) as DriverContext;
}

const NOTHING: PreparedChange = { commit: () => undefined, abort: () => undefined };

function openSettings(settings: Settings<typeof QCOW2_OPTIONS>): OpenSettings {
  return { ...cacheSizes(settings), key: new ImageKey(settings.encrypt) };
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

const OUTDATED_BITMAPS =
  'a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent\n' +
  "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.";

async function openNode(driver: DriverContext, sizes: OpenSettings): Promise<Qcow2Instance> {
  const image = await openSound(driver, sizes);
  if (hasOutdatedBitmaps(image.context.header)) driver.warn(OUTDATED_BITMAPS);
  const loaded = driver.isActive ? await loadBitmaps(driver, image, { isComplete: true }) : [];
  addBitmaps(driver, loaded, driver.mayWrite);
  // Whoever finds it after a crash is not to believe them, whether or not anything was changed, as in QEMU.
  if (driver.mayWrite && image.bitmaps.areUnmarked) await image.context.beginChanges();
  return new Qcow2Instance(driver, image, sizes);
}

/** One open qcow2 node. */
class Qcow2Instance implements DriverInstance {
  readonly requestAlignmentBytes = 1;
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

  /** Clusters that were made with the image are encrypted zeroes at most. */
  get readsZeroWhenNew(): boolean {
    const { context, tables } = this.#image();
    return this.backing === undefined && (!context.encryption || tables.isAbsent(0));
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
    await resizeImage(this.#image(), lengthBytes);
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    await changeBacking(this.#image().context, filename, format);
  }

  async makeEmpty(): Promise<void> {
    await unallocateClusters(this.#image(), 0, this.lengthBytes);
    await this.flush();
  }

  async amend({ keySlots, ...changes }: ImageAmendment): Promise<void> {
    await this.#writeAllBack();
    if (keySlots) await this.#amendKeySlots(keySlots);
    else await amendImage(this.#image(), changes);
  }

  async #amendKeySlots(keySlots: KeySlotAmendment): Promise<void> {
    const { encryption } = this.#image().context;
    if (!encryption)
      throw new BlockError('invalid', "Can't amend encryption options - encryption not present");
    const { volume } = encryption;
    if (!volume) throw new BlockError('unsupported', 'Only LUKS encryption options can be amended');
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
    };
    return { commit, abort: () => undefined };
  }

  /** Another file, or caches of other sizes: the image is opened anew. */
  async prepareReopen(reopening: Reopening<typeof QCOW2_OPTIONS>): Promise<PreparedReopening> {
    const { settings, readOnly, mayWrite } = reopening;
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
    await applyRepairs(await OpenImage.open(this.#driver, this.#sizes, true), plan);
    this.map.image = await OpenImage.open(this.#driver, this.#sizes, true);
    return plan.result;
  }

  info(): DriverInfo {
    const { context, snapshots, bitmaps } = this.#image();
    const { header, encryption } = context;
    const encrypt = encryption?.info();
    const data: { [key: string]: Json } =
      header.version === 2
        ? { compat: '0.10', 'compression-type': 'zlib', 'refcount-bits': 16, ...given({ encrypt }) }
        : {
            compat: '1.1',
            'compression-type': header.compressionType === 1 ? 'zstd' : 'zlib',
            'lazy-refcounts': (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
            ...given({ bitmaps: bitmaps.infos }),
            'refcount-bits': 2 ** header.refcountOrder,
            ...given({ encrypt }),
            ...dataFileInfo(header),
            corrupt: context.isMarkedCorrupt,
            'extended-l2': context.l2.unitsPerCluster > 1,
          };
    return {
      clusterSizeBytes: header.clusterBytes,
      vmStateOffset: alignUp(header.sizeBytes, (header.clusterBytes * header.clusterBytes) / ENTRY_BYTES),
      isDirty: context.isDirty,
      isCorrupt: context.isMarkedCorrupt,
      isEncrypted: encryption !== undefined,
      snapshots: snapshots.entries.map(snapshotInfo),
      formatSpecific: { type: 'qcow2', data },
    };
  }

  /** Errors: what could not be written, and how much is lost by that. */
  async close(): Promise<void> {
    const { bitmaps, tables, writeBack } = this.#image();
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

function dataFileInfo(header: Header): { [key: string]: Json } {
  const dataFile = dataFileOf(header);
  if (!dataFile) return {};
  const { name, isRaw } = dataFile;
  return { ...(name !== undefined && { 'data-file': name }), 'data-file-raw': isRaw };
}

/** The qcow2 format: versions 2 and 3 (README.md says what is refused). */
export const qcow2Driver: DriverDescription<typeof QCOW2_OPTIONS, typeof QCOW2_CREATE> = {
  name: 'qcow2',
  kind: 'format',
  options: QCOW2_OPTIONS,
  identityOptions: ['encrypt'],
  mutableOptions: Object.keys(QCOW2_OPTIONS.members),
  /** A name may say the secret alone. */
  modernise: (options) => {
    if (options.has('encrypt.key-secret') && !options.has('encrypt.format'))
      options.put('encrypt.format', 'luks');
  },
  amendOptions: LUKS_AMEND_NAMES.map((name) => `encrypt.${name}`),
  compresses: true,
  /** As QEMU's, its name is seen from where the program is. */
  async namedFiles(context) {
    const { parsed } = await readHeader(context.child('file'));
    const filename = dataFileOf(parsed)?.name;
    return filename === undefined
      ? []
      : [{ role: 'data-file', filename, what: 'data file', isFromHere: true }];
  },
  async open(context, settings) {
    const sizes = openSettings(settings);
    return openNode(context, sizes);
  },
  /** Version 1 is another format, qcow. */
  probe: (header) =>
    header.length >= 8 && header.readUInt32BE(0) === MAGIC && header.readUInt32BE(4) >= 2 ? 100 : 0,
  createOptions: QCOW2_CREATE,
  toolOptions: QCOW2_TOOL_OPTIONS,
  dataFileOption: 'data-file',
  checkNew: checkNewImage,
  measure: measureQcow2,
  create: (file, image, host, context) =>
    createQcow2(file, image, context && { host, secret: (id) => context.secret(id) }),
};
