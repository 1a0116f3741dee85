import {
  defaulted,
  enumOf,
  type FilledOf,
  int,
  optional,
  required,
  str,
  struct,
  type StructOf,
  union,
} from './types.js';

/** What images are encrypted with: QAPI's crypto types (QEMU 7.2). */

/** QEMU has more; node:crypto has no others that are made by sector. */
export const CipherAlgorithm = enumOf(
  'QCryptoCipherAlgorithm',
  ['aes-128', 'aes-192', 'aes-256'],
  [
    ...['des', '3des', 'cast5-128', 'serpent-128', 'serpent-192', 'serpent-256'],
    ...['twofish-128', 'twofish-192', 'twofish-256'],
  ],
);
export const CipherMode = enumOf('QCryptoCipherMode', ['ecb', 'cbc', 'xts', 'ctr']);
export const VectorGenerator = enumOf('QCryptoIVGenAlgorithm', ['plain', 'plain64', 'essiv']);
export const HashAlgorithm = enumOf('QCryptoHashAlgorithm', [
  ...(['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160'] as const),
]);

/** What opens an image: a secret's id. */
export const LUKS_MEMBERS = { 'key-secret': optional(str) } as const;

export const LUKS_CREATE_MEMBERS = {
  'key-secret': optional(str),
  'cipher-alg': defaulted(CipherAlgorithm, 'aes-256'),
  'cipher-mode': defaulted(CipherMode, 'xts'),
  'ivgen-alg': defaulted(VectorGenerator, 'plain64'),
  'ivgen-hash-alg': optional(HashAlgorithm),
  'hash-alg': defaulted(HashAlgorithm, 'sha256'),
  'iter-time': defaulted(int, 2000),
} as const;

/** A new volume, with its defaults. */
export type NewLuks = FilledOf<typeof LUKS_CREATE_MEMBERS>;

/** What becomes of key slots. */
export const LUKS_AMEND_MEMBERS = {
  state: required(enumOf('QCryptoBlockLUKSKeyslotState', ['active', 'inactive'])),
  'new-secret': optional(str),
  'old-secret': optional(str),
  keyslot: optional(int),
  'iter-time': optional(int),
  secret: optional(str),
} as const;

/** Those that a command line has. */
export const LUKS_AMEND_NAMES = Object.keys(LUKS_AMEND_MEMBERS).filter((name) => name !== 'secret');

export type LuksAmendment = StructOf<typeof LUKS_AMEND_MEMBERS>;

/** Of qcow2 images, which are encrypted in one of two ways. */
export const Qcow2Encryption = union(
  'BlockdevQcow2Encryption',
  { format: required(enumOf('BlockdevQcow2EncryptionFormat', ['aes', 'luks'])) },
  'format',
  {
    aes: struct('QCryptoBlockOptionsQCow', LUKS_MEMBERS),
    luks: struct('QCryptoBlockOptionsLUKS', LUKS_MEMBERS),
  },
);

const BLOCK_FORMAT = { format: required(enumOf('QCryptoBlockFormat', ['qcow', 'luks'])) } as const;

export const BlockEncryption = union('QCryptoBlockCreateOptions', BLOCK_FORMAT, 'format', {
  qcow: struct('QCryptoBlockOptionsQCow', LUKS_MEMBERS),
  luks: struct('QCryptoBlockCreateOptionsLUKS', LUKS_CREATE_MEMBERS),
});

export const BlockEncryptionAmendment = union('QCryptoBlockAmendOptions', BLOCK_FORMAT, 'format', {
  luks: struct('QCryptoBlockAmendOptionsLUKS', LUKS_AMEND_MEMBERS),
});
