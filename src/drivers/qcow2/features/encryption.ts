import { BlockError, errnoError } from '../../../base/error.js';
import type { ChildIo, DriverContext, Json } from '../../../block/driver.js';
import type { BlockEncryption, Qcow2Encryption } from '../../../schema/encryption-options.js';
import type { Infer } from '../../../schema/types.js';
import { type Cipher } from '../../encryption/cipher.js';
import { readEncrypted, writeEncrypted } from '../../encryption/encrypted-bytes.js';
import { luksInfo } from '../../encryption/info.js';
import { type LuksStorage, LuksVolume } from '../../encryption/luks-volume.js';
import { SectorCipher } from '../../encryption/sector-cipher.js';
import { readBytes } from '../../tables/read-bytes.js';
import type { EncryptionHeader, Header } from '../disk/header.js';

type EncryptOptions = Infer<typeof Qcow2Encryption>;

/** The older way: AES-128 in CBC mode, its key the password itself, cut or filled with zeroes. */
const OLD_CIPHER: Cipher = { aesKeyBytes: 16, mode: 'cbc', generator: 'plain64' };
const OLD_FORMAT = 'aes';

/** Where a LUKS header lies in an image (qcow2 specification, "Full disk encryption header pointer"). */
export function encryptionStorage(
  file: ChildIo,
  { offset: start, lengthBytes: mostBytes }: { offset: number; lengthBytes: number },
): LuksStorage {
  const check = (end: number): void => {
    if (end > mostBytes) throw errnoError('EINVAL', 'Encryption header is shorter than its key slots');
  };
  return {
    read: async (offset, lengthBytes) => {
      check(offset + lengthBytes);
      return readBytes(file, start + offset, lengthBytes);
    },
    write: async (offset, bytes) => {
      check(offset + bytes.length);
      await file.write(start + offset, bytes, 0);
    },
    flush: () => file.flush(),
  };
}

/** How an image's clusters are encrypted. */
export class ImageEncryption {
  readonly format: 'aes' | 'luks';
  readonly volume: LuksVolume | undefined;
  readonly #cipher: SectorCipher | undefined;

  /** `cipher`: undefined where the image is only looked at. */
  constructor(format: 'aes' | 'luks', volume: LuksVolume | undefined, cipher: SectorCipher | undefined) {
    this.format = format;
    this.volume = volume;
    this.#cipher = cipher;
  }

  async read(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void> {
    const place = { child, hostOffset, vectorOffset: this.#vectorOffset(hostOffset, offset) };
    await readEncrypted(this.#unlocked(), place, buffer);
  }

  async write(child: ChildIo, hostOffset: number, offset: number, bytes: Uint8Array): Promise<void> {
    const place = { child, hostOffset, vectorOffset: this.#vectorOffset(hostOffset, offset) };
    await writeEncrypted(this.#unlocked(), place, bytes);
  }

  /** Vectors are made of where a sector lies; in the older way, of where the guest has it. */
  #vectorOffset(hostOffset: number, offset: number): number {
    return this.format === 'luks' ? hostOffset : offset;
  }

  #unlocked(): SectorCipher {
    if (this.#cipher) return this.#cipher;
    throw errnoError('EPERM');
  }

  info(): { [key: string]: Json } {
    return this.volume ? luksInfo(this.volume.header, this.format) : { format: this.format };
  }
}

/** What an image is opened with, and the key that its password gave. */
export class ImageKey {
  readonly options: EncryptOptions | undefined;
  /** Of the volume with that digest. To find it takes seconds: images are opened anew now and then. */
  #known: { digest: Buffer; key: Buffer } | undefined;

  constructor(options: EncryptOptions | undefined) {
    this.options = options;
  }

  /** Errors: invalid, in QEMU's words; those of the LUKS header, of secrets and of wrong passwords. */
  async open(driver: DriverContext, header: Header, file: ChildIo): Promise<ImageEncryption | undefined> {
    const { encryption } = header;
    this.#checkFormat(encryption);
    if (!encryption) return undefined;
    if (encryption.format === OLD_FORMAT) return this.#openOld(driver);
    // Before the header, as in QEMU; an image that was open needs its secret no more.
    const secret = driver.onlyLook || this.#known ? undefined : this.#secret(driver);
    const volume = await LuksVolume.open(driver.host, encryptionStorage(file, encryption));
    if (driver.onlyLook) return new ImageEncryption('luks', volume, undefined);
    const { digest } = volume.header;
    if (this.#known?.digest.equals(digest) !== true) {
      const key = await volume.unlock(secret ?? this.#secret(driver));
      this.#known = { digest, key };
    }
    return new ImageEncryption('luks', volume, volume.payloadCipher(this.#known.key));
  }

  #openOld(driver: DriverContext): ImageEncryption {
    if (driver.objects.isOfMachine)
      throw new BlockError(
        'unsupported',
        'Use of AES-CBC encrypted qcow2 images is no longer supported in system emulators',
        {
          errno: 'ENOSYS',
          hint: "You can use 'qemu-img convert' to convert your image to an alternative supported format, such as unencrypted qcow2, or raw with the LUKS format instead.",
        },
      );
    const cipher = driver.onlyLook
      ? undefined
      : new SectorCipher(driver.host.compute, OLD_CIPHER, oldKey(this.#secret(driver)));
    return new ImageEncryption(OLD_FORMAT, undefined, cipher);
  }

  #checkFormat(encryption: EncryptionHeader | undefined): void {
    const wanted = this.options?.format;
    if (wanted === undefined || wanted === encryption?.format) return;
    if (!encryption) throw invalid(`No encryption in image header, but options specified format '${wanted}'`);
    throw invalid(`Header reported '${encryption.format}' encryption format but options specify '${wanted}'`);
  }

  #secret({ objects }: DriverContext): Uint8Array {
    const id = this.options?.['key-secret'];
    if (id === undefined) throw noSecret();
    return objects.secret(id);
  }
}

/** What an amendment changes the passwords of. Errors: invalid, unsupported. */
export function keySlotVolume(encryption: ImageEncryption | undefined): LuksVolume {
  if (!encryption) throw invalid("Can't amend encryption options - encryption not present");
  const { volume } = encryption;
  if (!volume) throw new BlockError('unsupported', 'Only LUKS encryption options can be amended');
  return volume;
}

export function noSecret(): BlockError {
  return invalid("Parameter 'encrypt.key-secret' is required for cipher");
}

function oldKey(password: Uint8Array): Buffer {
  const key = Buffer.alloc(OLD_CIPHER.aesKeyBytes);
  key.set(password.subarray(0, key.length));
  return key;
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message, { errno: 'EINVAL' });
}

/** What a new image is to be encrypted with. */
export type NewEncryption = Infer<typeof BlockEncryption>;
