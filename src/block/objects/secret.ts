import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import { enumOf, str } from '../../schema/types.js';
import { invalid, type ObjectContext, type ObjectType, type PropertyValues, UserObject } from './object.js';
import { readWholeFile } from './whole-file.js';

const KEY_BYTES = 32;
const IV_BYTES = 16;
const BLOCK_BYTES = 16;

/** Bytes that others name by their id: a password, a key. */
export class Secret extends UserObject {
  /** Decrypted, and decoded. */
  readonly bytes: Uint8Array;

  constructor(id: string, values: PropertyValues, bytes: Uint8Array) {
    super(id, SECRET, values);
    this.bytes = bytes;
  }

  /** Without what it was given as: that is asked for again. */
  override get description(): PropertyValues {
    const { data: _, ...rest } = this.values;
    return rest;
  }
}

/** A secret as text. Errors: invalid. */
export function secretText(id: string, bytes: Uint8Array): string {
  try {
    if (!bytes.includes(0)) return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    // Told below.
  }
  throw invalid(`Data from secret ${id} is not valid UTF-8`);
}

export const SECRET: ObjectType = {
  name: 'secret',
  parents: ['secret_common', 'object'],
  properties: [
    { name: 'iv', qomType: 'string', type: str, initial: '' },
    { name: 'keyid', qomType: 'string', type: str, initial: '' },
    { name: 'loaded', qomType: 'bool', initial: true },
    {
      name: 'format',
      qomType: 'QCryptoSecretFormat',
      type: enumOf('QCryptoSecretFormat', ['raw', 'base64']),
      initial: 'raw',
    },
    { name: 'file', qomType: 'string', type: str, initial: '' },
    { name: 'data', qomType: 'string', type: str, initial: '' },
  ],
  async make(id, values, context) {
    const given = await rawBytes(values, context);
    const keyId = values['keyid'] as string | undefined;
    const isBase64 = values['format'] === 'base64';
    if (keyId !== undefined) return new Secret(id, values, decrypt(given, keyId, isBase64, values, context));
    return new Secret(id, values, isBase64 ? decodeBase64(given) : given);
  },
};

async function rawBytes(values: PropertyValues, { host }: ObjectContext): Promise<Buffer> {
  const { file, data } = values as { file?: string; data?: string };
  if (file !== undefined && data !== undefined) throw invalid("'file' and 'data' are mutually exclusive");
  if (data !== undefined) return Buffer.from(data);
  if (file === undefined) throw invalid("Either 'file' or 'data' must be provided");
  try {
    return await readWholeFile(host, file);
  } catch (error) {
    const errno = errnoOf(error);
    const what = errno === 'EISDIR' ? 'Error reading file' : 'Failed to open file';
    const kind = error instanceof BlockError ? error.kind : 'io';
    throw new BlockError(kind, `Unable to read ${file}: ${what} “${file}”: ${errnoText(errno)}`, {
      cause: error,
      errno,
    });
  }
}

/** Of AES-256 in CBC mode, with the padding of PKCS #7 (QEMU's docs/system/secrets.rst). */
function decrypt(
  input: Buffer,
  keyId: string,
  isBase64: boolean,
  values: PropertyValues,
  context: ObjectContext,
): Buffer {
  const key = context.secret(keyId);
  if (key.length !== KEY_BYTES) throw invalid(`Key should be ${KEY_BYTES} bytes in length`);
  const ivText = values['iv'] as string | undefined;
  if (ivText === undefined) throw invalid('IV is required to decrypt secret');
  const iv = decodeBase64(Buffer.from(ivText));
  if (iv.length !== IV_BYTES) throw invalid(`IV should be ${IV_BYTES} bytes in length not ${iv.length}`);
  const encrypted = isBase64 ? decodeBase64(input) : input;
  if (encrypted.length % BLOCK_BYTES !== 0)
    throw invalid(`Length ${encrypted.length} must be a multiple of block size ${BLOCK_BYTES}`);
  const { createDecipheriv } = process.getBuiltinModule('node:crypto');
  const decipher = createDecipheriv('aes-256-cbc', key, iv).setAutoPadding(false);
  const padded = Buffer.concat([decipher.update(encrypted), decipher.final()]);
  const padding = padded.at(-1) ?? 0;
  if (padding === 0 || padding > BLOCK_BYTES || padding > padded.length)
    throw invalid(`Incorrect number of padding bytes (${padding}) found on decrypted data`);
  return padded.subarray(0, padded.length - padding);
}

/** Errors: invalid, where a character is no digit; a last group may be short. */
function decodeBase64(input: Buffer): Buffer {
  const text = input.toString('latin1').replace(/\n/g, '');
  if (!/^[A-Za-z0-9+/]*={0,2}$/.test(text)) throw invalid('Base64 data contains invalid characters');
  return Buffer.from(text, 'base64');
}
