import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { bool, enumOf, str } from '../../schema/types.js';
import { checkCertificates, checkKeyPair } from './certificate-checks.js';
import {
  invalid,
  type ObjectContext,
  type ObjectType,
  type Property,
  type PropertyValues,
  UserObject,
} from './object.js';
import { secretText } from './secret.js';
import { readWholeFile } from './whole-file.js';

/** What one end of TLS shows and asks for, read from files when the object was made. */
export interface TlsMaterial {
  /** Certificates whose signatures are trusted, PEM. */
  ca?: Buffer;
  /** Revoked certificates, PEM. */
  crl?: Buffer;
  certificate?: Buffer;
  key?: Buffer;
  /** Of the key. */
  passphrase?: string;
  dhParameters?: Buffer;
  /** Pre-shared keys by the name of who has them. */
  sharedKeys?: ReadonlyMap<string, Buffer>;
}

const DEFAULT_USER = 'qemu';

/** Credentials for TLS: which certificates, keys or pre-shared keys one end has. */
export class TlsCredentials extends UserObject {
  readonly material: TlsMaterial;

  constructor(id: string, type: ObjectType, values: PropertyValues, material: TlsMaterial) {
    super(id, type, values);
    this.material = material;
  }

  get endpoint(): 'client' | 'server' {
    return this.get('endpoint') as 'client' | 'server';
  }

  /** Whether the other end must show a certificate that is good. */
  get verifiesPeer(): boolean {
    return this.get('verify-peer') as boolean;
  }

  /** GnuTLS's priority string; empty: the default. */
  get priority(): string {
    return this.get('priority') as string;
  }

  /** Whose key a client uses. */
  get userName(): string {
    return (this.values['username'] as string | undefined) ?? DEFAULT_USER;
  }
}

const COMMON: readonly Property[] = [
  {
    name: 'endpoint',
    qomType: 'QCryptoTLSCredsEndpoint',
    type: enumOf('QCryptoTLSCredsEndpoint', ['client', 'server']),
    initial: 'client',
  },
  { name: 'dir', qomType: 'string', type: str, initial: '' },
  { name: 'verify-peer', qomType: 'bool', type: bool, initial: true },
  { name: 'priority', qomType: 'string', type: str, initial: '' },
];
const LOADED: Property = { name: 'loaded', qomType: 'bool', initial: true };
const PARENTS = ['tls-creds', 'object'];

/** No certificates: nobody is known, but nobody else listens. */
export const TLS_CREDS_ANON: ObjectType = {
  name: 'tls-creds-anon',
  parents: PARENTS,
  properties: [...COMMON, LOADED],
  async make(id, values, { host }) {
    const { dir } = values as { dir?: string };
    const dhParameters = await readOptional(host, dir, 'dh-params.pem', values['endpoint'] === 'server');
    return new TlsCredentials(id, TLS_CREDS_ANON, values, dhParameters ? { dhParameters } : {});
  },
};

export const TLS_CIPHER_SUITES: ObjectType = {
  name: 'tls-cipher-suites',
  parents: PARENTS,
  properties: COMMON,
  check({ priority }) {
    if (priority === undefined) throw invalid("'priority' property is not set");
  },
  make: (id, values) => new TlsCredentials(id, TLS_CIPHER_SUITES, values, {}),
};

export const TLS_CREDS_PSK: ObjectType = {
  name: 'tls-creds-psk',
  parents: PARENTS,
  properties: [...COMMON, { name: 'username', qomType: 'string', type: str, initial: '' }, LOADED],
  async make(id, values, { host }) {
    const dir = folderOf(values);
    const { username } = values as { username?: string };
    const isServer = values['endpoint'] === 'server';
    if (isServer && username !== undefined) throw invalid('username should not be set when endpoint=server');
    const path = `${dir}/keys.psk`;
    const sharedKeys = parseKeys(await readNeeded(host, path));
    const user = username ?? DEFAULT_USER;
    if (!isServer && !sharedKeys.has(user)) throw invalid(`Username ${user} not found in PSK file ${path}`);
    return new TlsCredentials(id, TLS_CREDS_PSK, values, { sharedKeys });
  },
};

export const TLS_CREDS_X509: ObjectType = {
  name: 'tls-creds-x509',
  parents: PARENTS,
  properties: [
    ...COMMON,
    { name: 'sanity-check', qomType: 'bool', type: bool, initial: true },
    { name: 'passwordid', qomType: 'string', type: str, initial: '' },
    LOADED,
  ],
  async make(id, values, context) {
    return new TlsCredentials(id, TLS_CREDS_X509, values, await loadCertificates(values, context));
  },
};

async function loadCertificates(values: PropertyValues, context: ObjectContext): Promise<TlsMaterial> {
  const { host } = context;
  const dir = folderOf(values);
  const isServer = values['endpoint'] === 'server';
  const end = isServer ? 'server' : 'client';
  const paths = {
    ca: `${dir}/ca-cert.pem`,
    certificate: `${dir}/${end}-cert.pem`,
    key: `${dir}/${end}-key.pem`,
  };
  const material: TlsMaterial = { ca: await readNeeded(host, paths.ca) };
  const read = async (path: string): Promise<Buffer | undefined> =>
    isServer ? readNeeded(host, path) : readIfThere(host, path);
  const [certificate, key] = [await read(paths.certificate), await read(paths.key)];
  if (certificate && key) Object.assign(material, { certificate, key });
  const crl = await readIfThere(host, `${dir}/ca-crl.pem`);
  if (crl) material.crl = crl;
  const dhParameters = await readOptional(host, dir, 'dh-params.pem', isServer);
  if (dhParameters) material.dhParameters = dhParameters;
  if (values['sanity-check'] !== false) checkCertificates(material, paths, isServer);
  const passwordId = values['passwordid'] as string | undefined;
  if (passwordId !== undefined && material.key)
    material.passphrase = secretText(passwordId, context.secret(passwordId));
  checkKeyPair(material, paths);
  return material;
}

function folderOf({ dir }: PropertyValues): string {
  if (dir === undefined) throw invalid("Missing 'dir' property value");
  return dir as string;
}

/** A line each: NAME:KEY, the key in hexadecimal. */
function parseKeys(text: Buffer): Map<string, Buffer> {
  const keys = new Map<string, Buffer>();
  for (const line of text.toString('utf8').split('\n')) {
    const colon = line.lastIndexOf(':');
    if (colon > 0) keys.set(line.slice(0, colon), Buffer.from(line.slice(colon + 1).trim(), 'hex'));
  }
  return keys;
}

async function readNeeded(host: Host, path: string): Promise<Buffer> {
  try {
    return await readWholeFile(host, path);
  } catch (error) {
    const errno = errnoOf(error);
    const kind = error instanceof BlockError ? error.kind : 'io';
    const text = `Unable to access credentials ${path}: ${errnoText(errno)}`;
    throw new BlockError(kind, text, { cause: error, errno, path });
  }
}

async function readIfThere(host: Host, path: string): Promise<Buffer | undefined> {
  return (await host.files.stat(path)) === undefined ? undefined : readNeeded(host, path);
}

function readOptional(
  host: Host,
  dir: string | undefined,
  name: string,
  isWanted: boolean,
): Promise<Buffer | undefined> {
  return isWanted && dir !== undefined ? readIfThere(host, `${dir}/${name}`) : Promise.resolve(undefined);
}
