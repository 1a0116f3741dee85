import { isDeepStrictEqual } from 'node:util';
import { alignUp } from '../../base/align.js';
import { assert } from '../../base/assert.js';
import { BlockError, errnoError, toBlockError } from '../../base/error.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  ImageCheck,
  Json,
  PreparedChange,
  PreparedReopening,
  Reopening,
  RepairMode,
} from '../../block/driver.js';
import { QCOW2_OPTIONS } from '../../schema/blockdev-options.js';
import { QCOW2_CREATE } from '../../schema/create-options.js';
import { planRepairs } from './check/check.js';
import { applyRepairs } from './check/repair.js';
import { changeBacking } from './features/backing.js';
import { Qcow2Snapshots } from './image-snapshots.js';
import { createQcow2 } from './create.js';
import { checkNewImage, QCOW2_TOOL_OPTIONS } from './create-options.js';
import { COMPATIBLE_LAZY_REFCOUNTS, ENTRY_BYTES, Incompatible, MAGIC } from './disk/layout.js';
import { snapshotInfo } from './disk/snapshots.js';
import { dataFileOf, type Header } from './disk/header.js';
import { readHeader } from './image.js';
import { cacheSizes } from './tables/cache-sizes.js';
import { type CacheSizes, OpenImage } from './open-image.js';
import { Qcow2Map } from './map-driver.js';
import { resizeImage } from './mapping/resize.js';

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

/** Opens an image; one that its last user did not close is repaired first where it may be written. */
async function openSound(driver: DriverContext, sizes: CacheSizes): Promise<OpenImage> {
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

/** One open qcow2 node. */
class Qcow2Instance implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  readonly map: Qcow2Map;
  readonly snapshots: Qcow2Snapshots;
  #driver: DriverContext;
  #sizes: CacheSizes;

  constructor(driver: DriverContext, image: OpenImage, sizes: CacheSizes) {
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

  get readsZeroWhenNew(): boolean {
    return this.backing === undefined;
  }

  async flush(): Promise<void> {
    const { context, writeBack } = this.#image();
    await context.marked();
    // What may not be written has nothing to write: skipping it would lose it in silence.
    assert(context.mayWrite || !writeBack.isDirty, 'an image that may not be written is not dirty');
    if (context.mayWrite) await writeBack.flush();
  }

  async truncate(lengthBytes: number): Promise<void> {
    await resizeImage(this.#image(), lengthBytes);
  }

  async changeBacking(filename: string | undefined, format: string | undefined): Promise<void> {
    await changeBacking(this.#image().context, filename, format);
  }

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    if (readOnly) return this.#prepareNoWrites();
    this.#image().context.checkWritable();
    this.#image().context.checkClean();
    return NOTHING;
  }

  /** A write-back frees clusters at its end, which the next one brings to disk. Then refcounts are right. */
  async #writeAllBack(): Promise<void> {
    const { context, writeBack } = this.#image();
    do await this.flush();
    while (writeBack.isDirty);
    if (context.mayWrite && context.isSound && !context.staysDirty)
      await context.clearIncompatible(Incompatible.dirty);
  }

  /** For the time when nothing may be written. */
  async #prepareNoWrites(): Promise<PreparedChange> {
    await this.#writeAllBack();
    const { writeBack } = this.#image();
    const commit = (): void =>
      assert(!writeBack.isDirty, 'nothing is written while an image stops being ours');
    return { commit, abort: () => undefined };
  }

  prepareInactivation(): Promise<PreparedChange> {
    return this.#prepareNoWrites();
  }

  /** Everything is read anew; the image that was open until then answers until commit. */
  async prepareActivation(mayWrite: boolean): Promise<PreparedChange> {
    let image: OpenImage;
    try {
      image = await OpenImage.open(this.#driver, this.#sizes, mayWrite);
      if (mayWrite) image.context.checkClean();
    } catch (error) {
      const { kind, message } = toBlockError(error);
      throw new BlockError(kind, `Could not reopen qcow2 layer: ${message}`, { cause: error });
    }
    return { commit: () => void (this.map.image = image), abort: () => undefined };
  }

  /** Another file, or caches of other sizes: the image is opened anew. */
  async prepareReopen(reopening: Reopening<typeof QCOW2_OPTIONS>): Promise<PreparedReopening> {
    const { settings, readOnly, mayWrite } = reopening;
    const sizes = cacheSizes(settings);
    const file = reopening.newChild('file');
    const isAlike = isDeepStrictEqual(sizes, this.#sizes);
    if (file === undefined && isAlike)
      return readOnly === this.#driver.readOnly ? NOTHING : this.prepareReadOnly(readOnly);
    await this.#writeAllBack();
    const driver = file ? withFile(this.#driver, file) : this.#driver;
    const image = await OpenImage.open(driver, sizes, mayWrite);
    if (mayWrite) image.context.checkClean();
    return {
      lengthBytes: image.context.header.sizeBytes,
      commit: () => {
        this.map.image = image;
        this.#driver = driver;
        this.#sizes = sizes;
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
    const { context, snapshots } = this.#image();
    const { header } = context;
    const data: { [key: string]: Json } =
      header.version === 2
        ? { compat: '0.10', 'compression-type': 'zlib', 'refcount-bits': 16 }
        : {
            compat: '1.1',
            'compression-type': header.compressionType === 1 ? 'zstd' : 'zlib',
            'lazy-refcounts': (header.compatible & COMPATIBLE_LAZY_REFCOUNTS) !== 0n,
            'refcount-bits': 2 ** header.refcountOrder,
            ...dataFileInfo(header),
            corrupt: context.isMarkedCorrupt,
            'extended-l2': context.l2.unitsPerCluster > 1,
          };
    return {
      clusterSizeBytes: header.clusterBytes,
      vmStateOffset: alignUp(header.sizeBytes, (header.clusterBytes * header.clusterBytes) / ENTRY_BYTES),
      isDirty: context.isDirty,
      isCorrupt: context.isMarkedCorrupt,
      snapshots: snapshots.entries.map(snapshotInfo),
      formatSpecific: { type: 'qcow2', data },
    };
  }

  /** Errors: what could not be written, and how much is lost by that. */
  async close(): Promise<void> {
    try {
      await this.#writeAllBack();
    } catch (error) {
      throw this.#image().writeBack.lossError(error);
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
  mutableOptions: Object.keys(QCOW2_OPTIONS.members),
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
    const sizes = cacheSizes(settings);
    return new Qcow2Instance(context, await openSound(context, sizes), sizes);
  },
  /** Version 1 is another format, qcow. */
  probe: (header) => {
    if (header.length < 8) return 0;
    const bytes = Buffer.from(header.buffer, header.byteOffset, 8);
    return bytes.readUInt32BE(0) === MAGIC && bytes.readUInt32BE(4) >= 2 ? 100 : 0;
  },
  createOptions: QCOW2_CREATE,
  toolOptions: QCOW2_TOOL_OPTIONS,
  dataFileOption: 'data-file',
  checkNew: checkNewImage,
  create: (file, image) => createQcow2(file, image),
};
