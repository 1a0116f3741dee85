import { BlockError } from '../../base/error.js';
import type { InitialVector } from '../../codec/index.js';
import { CipherMode, HashAlgorithm, VectorGenerator } from '../../schema/encryption-options.js';
import type { Infer } from '../../schema/types.js';

export type Hash = Infer<typeof HashAlgorithm>;

/** AES, its mode, and where a sector's initial vector comes from. */
export interface Cipher {
  /** Of AES itself: 16, 24 or 32. */
  readonly aesKeyBytes: number;
  readonly mode: Infer<typeof CipherMode>;
  readonly generator: Infer<typeof VectorGenerator>;
  readonly generatorHash?: Hash | undefined;
}

/** XTS has two keys. */
export function keyBytesOf({ aesKeyBytes, mode }: Cipher): number {
  return mode === 'xts' ? 2 * aesKeyBytes : aesKeyBytes;
}

/** As LUKS headers have it, and dm-crypt: `xts-plain64`. */
export function modeText({ mode, generator, generatorHash }: Cipher): string {
  return `${mode}-${generator}${generatorHash === undefined ? '' : `:${generatorHash}`}`;
}

/** Ciphers of LUKS that QEMU knows and livedisk has not. */
const OTHER_CIPHERS = new Set(['serpent', 'twofish', 'cast5', 'des', 'des3_ede']);

/** The cipher of a LUKS header. Errors: corrupt, unsupported; in QEMU's words where it has some. */
export function parseCipher(name: string, modeSpec: string, keyBytes: number): Cipher {
  const [, modeName = '', generatorName = '', hashName] = /^([^-]*)-([^:]*)(?::(.*))?$/s.exec(modeSpec) ?? [];
  if (modeName === '') throw corrupt(`Unexpected cipher mode string format '${modeSpec}'`);
  const mode = oneOf(CipherMode, modeName, `Cipher mode '${modeName}' not supported`);
  const aesKeyBytes = mode === 'xts' ? keyBytes / 2 : keyBytes;
  if (OTHER_CIPHERS.has(name))
    throw new BlockError('unsupported', `Cipher '${name}' is not supported by livedisk`);
  if (name !== 'aes' || ![16, 24, 32].includes(aesKeyBytes))
    throw corrupt(`Algorithm '${name}' with key size ${Math.floor(aesKeyBytes)} bytes not supported`);
  const hash = hashName === undefined ? undefined : parseHash(hashName);
  const why = `IV generator '${generatorName}' not supported`;
  return newCipher(aesKeyBytes, mode, oneOf(VectorGenerator, generatorName, why), hash);
}

/** Errors: invalid, where the hash makes no key of AES. */
export function newCipher(
  aesKeyBytes: number,
  mode: Cipher['mode'],
  generator: Cipher['generator'],
  generatorHash: Hash | undefined,
): Cipher {
  const cipher = { aesKeyBytes, mode, generator, generatorHash };
  vectorOf(cipher);
  return cipher;
}

export function parseHash(name: string): Hash {
  return oneOf(HashAlgorithm, name, `Hash algorithm '${name}' not supported`);
}

const HASH_BYTES: Readonly<Record<Hash, number>> = {
  ...{ md5: 16, sha1: 20, sha224: 28, sha256: 32 },
  ...{ sha384: 48, sha512: 64, ripemd160: 20 },
};

/** Errors: invalid. */
export function vectorOf({ generator, generatorHash }: Cipher): InitialVector {
  if (generator !== 'essiv') return generator;
  if (generatorHash === undefined) throw corrupt('Missing IV generator hash specification');
  if (generatorHash === 'md5' || generatorHash === 'sha256') return `essiv-${generatorHash}`;
  throw corrupt(`No AES cipher with key size ${HASH_BYTES[generatorHash]} available`);
}

function oneOf<T extends string>(
  type: { description: unknown; parse(value: string, path: string, mode: 'qmp'): T },
  name: string,
  message: string,
): T {
  try {
    return type.parse(name, '', 'qmp');
  } catch (error) {
    throw new BlockError('unsupported', message, { cause: error });
  }
}

function corrupt(message: string): BlockError {
  return new BlockError('corrupt', message);
}
