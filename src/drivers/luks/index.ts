import { alignUp } from '../../base/align.js';
import { BlockError, errnoError } from '../../base/error.js';
import { MAX_IMAGE_BYTES } from '../../base/limits.js';
import type {
  ChildIo,
  DriverContext,
  DriverDescription,
  DriverInfo,
  DriverInstance,
  ImageAmendment,
  MeasuredContent,
  Measurement,
  NewImage,
  NewImageContext,
  PreparedChange,
  PreparedReopening,
  Reopening,
  Settings,
} from '../../block/driver.js';
import type { Host } from '../../host/host.js';
import { checkFileSpace, takeFileSpace } from '../../block/new-space.js';
import { LUKS_OPTIONS } from '../../schema/blockdev-options.js';
import { LUKS_TOOL_CREATE } from '../../schema/create-options.js';
import { LUKS_AMEND_NAMES } from '../../schema/encryption-options.js';
import { luksInfo } from '../encryption/info.js';
import { amendKeySlots } from '../encryption/key-slots.js';
import { layoutOf, MAGIC } from '../encryption/luks-header.js';
import { cipherOf, createVolume, type LuksStorage, LuksVolume } from '../encryption/luks-volume.js';
import { SECTOR_BYTES } from '../encryption/sector-cipher.js';
import { randomUuid, uuidText } from '../tables/new-image.js';
import { readBytes } from '../tables/read-bytes.js';
import { LuksMap } from './map.js';

type LuksSettings = Settings<typeof LUKS_OPTIONS>;

/** Header and key slots at a file's beginning. */
function storageOf(file: ChildIo): LuksStorage {
  return {
    read: (offset, lengthBytes) => readBytes(file, offset, lengthBytes),
    write: (offset, bytes) => file.write(offset, bytes, 0),
    flush: () => file.flush(),
  };
}

interface OpenVolume {
  readonly volume: LuksVolume;
  readonly map: LuksMap;
  readonly file: ChildIo;
}

/** Errors: those of the header; permission, invalid, not-found where it cannot be unlocked. */
async function load(driver: DriverContext, settings: LuksSettings, file: ChildIo): Promise<OpenVolume> {
  // Before the header, as in QEMU: what is missing is told of any file.
  const secret = driver.onlyLook ? undefined : secretOf(driver, settings);
  const isDetached = driver.hasChild('header');
  const storage = storageOf(isDetached ? driver.child('header') : file);
  const volume = await LuksVolume.open(driver.host, storage, isDetached);
  const { payloadOffset } = volume.header;
  if (payloadOffset > file.lengthBytes)
    throw errnoError('EIO', 'Could not refresh total sector count', { path: driver.filename });
  const cipher = secret && volume.payloadCipher(await volume.unlock(secret));
  return { volume, map: new LuksMap(file, payloadOffset, cipher), file };
}

function secretOf({ objects }: DriverContext, { 'key-secret': id }: LuksSettings): Uint8Array {
  if (id === undefined) throw noSecret();
  return objects.secret(id);
}

function noSecret(): BlockError {
  return new BlockError('invalid', "Parameter 'key-secret' is required for cipher");
}

/** A disk whose file has its sectors encrypted. */
class LuksNode implements DriverInstance {
  readonly requestAlignmentBytes = 1;
  #driver: DriverContext;
  #settings: LuksSettings;
  #open: OpenVolume;

  constructor(driver: DriverContext, settings: LuksSettings, open: OpenVolume) {
    this.#driver = driver;
    this.#settings = settings;
    this.#open = open;
  }

  get map(): LuksMap {
    return this.#open.map;
  }

  get lengthBytes(): number {
    const { file, map } = this.#open;
    return alignUp(Math.max(0, file.lengthBytes - map.start), SECTOR_BYTES);
  }

  get hasFixedLength(): boolean {
    return this.#open.file.hasFixedLength === true;
  }

  flush(): Promise<void> {
    return this.#open.file.flush();
  }

  async truncate(lengthBytes: number): Promise<void> {
    await this.#open.file.truncate(this.#open.map.start + lengthBytes);
  }

  async amend({ keySlots }: ImageAmendment): Promise<void> {
    if (!keySlots) return;
    const openedWith = this.#settings['key-secret'];
    const secretOf = (id: string): Uint8Array => this.#driver.objects.secret(id);
    await amendKeySlots(this.#open.volume, { ...keySlots, secretOf, openedWith });
  }

  async prepareActivation(): Promise<PreparedChange> {
    return this.#prepared(this.#settings, this.#open.file);
  }

  async prepareReopen(reopening: Reopening<typeof LUKS_OPTIONS>): Promise<PreparedReopening> {
    const file = reopening.newChild('file');
    if (!file) return { commit: () => undefined, abort: () => undefined };
    return this.#prepared(reopening.settings, file);
  }

  async #prepared(settings: LuksSettings, file: ChildIo): Promise<PreparedReopening> {
    const open = await load(this.#driver, settings, file);
    return {
      lengthBytes: alignUp(file.lengthBytes - open.map.start, SECTOR_BYTES),
      commit: () => {
        this.#settings = settings;
        this.#open = open;
      },
      abort: () => undefined,
    };
  }

  info(): DriverInfo {
    const { volume } = this.#open;
    return { isEncrypted: true, formatSpecific: { type: 'luks', data: luksInfo(volume.header) } };
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

type NewLuksImage = NewImage<typeof LUKS_TOOL_CREATE>;

/** Where the encrypted disk is to be. */
function payloadOf(image: NewLuksImage): { isDetached: boolean; payloadOffset: number } {
  const { options, isHeaderApart = false } = image;
  const isDetached = isHeaderApart || options['detached-header'];
  return { isDetached, payloadOffset: isDetached ? 0 : layoutOf(cipherOf(options)).payloadOffset };
}

/** Errors: invalid, limit. */
function checkNew(image: NewLuksImage): void {
  const { sizeBytes, options, dataFile } = image;
  if (options['key-secret'] === undefined) throw noSecret();
  checkFileSpace(options.preallocation);
  const { payloadOffset, isDetached } = payloadOf(image);
  if (isDetached && !dataFile && options.preallocation !== 'off')
    throw new BlockError(
      'invalid',
      "Parameter 'preallocation' requires 'file' to be specified for formatting LUKS disk",
    );
  if (sizeBytes + payloadOffset > MAX_IMAGE_BYTES)
    throw new BlockError('limit', 'The requested file size is too large', { errno: 'EFBIG' });
}

async function create(
  file: ChildIo,
  image: NewLuksImage,
  host: Host,
  context: NewImageContext | undefined,
): Promise<void> {
  checkNew(image);
  const { options, sizeBytes } = image;
  const password = context?.secret(options['key-secret'] ?? '');
  if (!password) throw noSecret();
  const { payloadOffset, isDetached } = payloadOf(image);
  if (file.lengthBytes > 0) {
    // What lies there is not to look like a volume whose keys are about to change.
    await file.write(0, Buffer.alloc(Math.min(SECTOR_BYTES, file.lengthBytes)), 0);
    await file.flush();
  }
  const payload = isDetached ? image.dataFile?.io : file;
  if (isDetached) await file.truncate(layoutOf(cipherOf(options)).payloadOffset);
  if (payload) {
    await payload.truncate(payloadOffset + sizeBytes);
    await takeFileSpace(payload, 0, payloadOffset + sizeBytes, options.preallocation);
    if (payload !== file) await payload.flush();
  }
  const uuid = uuidText(randomUuid(host));
  await createVolume(host, storageOf(file), options, { password, uuid, isDetached });
}

/** Where nothing can be left out: what is not written does not read as zeroes. */
async function measure({ sizeBytes, options }: NewLuksImage, content: MeasuredContent): Promise<Measurement> {
  if (options['key-secret'] === undefined) throw noSecret();
  content.secret(options['key-secret']);
  const { payloadOffset } = layoutOf(cipherOf(options));
  const bytes = options['detached-header'] ? payloadOffset : sizeBytes + payloadOffset;
  return { requiredBytes: bytes, fullyAllocatedBytes: bytes };
}

/** LUKS, version 1. */
export const luksDriver: DriverDescription<typeof LUKS_OPTIONS, typeof LUKS_TOOL_CREATE> = {
  name: 'luks',
  opensWithoutWriting: true,
  kind: 'format',
  options: LUKS_OPTIONS,
  identityOptions: ['key-secret'],
  followsChildSize: true,

  async open(context, settings) {
    return new LuksNode(context, settings, await load(context, settings, context.child('file')));
  },

  probe: (header) => {
    const bytes = Buffer.from(header.buffer, header.byteOffset, header.length);
    const isLuks = bytes.length >= 8 && bytes.subarray(0, 6).equals(MAGIC);
    return isLuks && bytes.readUInt16BE(6) === 1 ? 100 : 0;
  },

  createOptions: LUKS_TOOL_CREATE,
  toolOptions: [
    { name: 'size' },
    { name: 'key-secret', member: 'key-secret' },
    { name: 'cipher-alg', member: 'cipher-alg' },
    { name: 'cipher-mode', member: 'cipher-mode' },
    { name: 'ivgen-alg', member: 'ivgen-alg' },
    { name: 'ivgen-hash-alg', member: 'ivgen-hash-alg' },
    { name: 'hash-alg', member: 'hash-alg' },
    { name: 'iter-time', member: 'iter-time' },
    { name: 'detached-header', member: 'detached-header', isLater: true },
    { name: 'preallocation', member: 'preallocation' },
    { name: 'nocow' },
    { name: 'extent_size_hint' },
  ],
  amendOptions: LUKS_AMEND_NAMES,
  checkNew,
  measure,
  create,
};
