import { BlockError } from '../../base/error.js';
import { KiB, MiB } from '../../base/limits.js';
import type { DriverContext, DriverDescription, Settings } from '../../block/driver.js';
import { HTTP_OPTIONS, HTTPS_OPTIONS } from '../../schema/blockdev-options.js';
import { httpFilename, httpSecretIn, parseHttpFilename, parseUrl, PRIVATE_OPTIONS } from './address.js';
import { HttpNode, readOnlyError } from './node.js';
import { MAX_IN_FLIGHT } from './read-ahead.js';
import { HttpSource } from './source.js';

type HttpSettings = Settings<typeof HTTP_OPTIONS> & { sslverify?: boolean };

const SECTOR_BYTES = 512;
const DEFAULT_READAHEAD_BYTES = 256 * KiB;
/** So much is kept of each of several requests. */
const MAX_READAHEAD_BYTES = 64 * MiB;
/** Seconds. */
const DEFAULT_TIMEOUT = 5;
const MAX_TIMEOUT = 10_000;

/** Files of web servers, to be read. */
export const httpDriver: DriverDescription<typeof HTTP_OPTIONS> = {
  ...common('http'),
  options: HTTP_OPTIONS,
  identityOptions: ['url', ...PRIVATE_OPTIONS],
  open: (context, settings) => open('http', context, settings),
};

export const httpsDriver: DriverDescription<typeof HTTPS_OPTIONS> = {
  ...common('https'),
  options: HTTPS_OPTIONS,
  identityOptions: ['url', 'sslverify', ...PRIVATE_OPTIONS],
  open: (context, settings) => open('https', context, settings),
};

function common(name: 'http' | 'https') {
  return {
    name,
    kind: 'protocol',
    hasFolders: true,
    filename: httpFilename,
    secretIn: httpSecretIn,
    parseFilename: (filename: string) => parseHttpFilename(name, filename),
  } as const;
}

/** In QEMU's words and order. */
async function open(scheme: string, context: DriverContext, settings: HttpSettings): Promise<HttpNode> {
  if (!context.readOnly && settings['auto-read-only'] !== true) throw readOnlyError();
  const aheadBytes = settings.readahead ?? DEFAULT_READAHEAD_BYTES;
  if (aheadBytes % SECTOR_BYTES !== 0)
    throw invalid(`HTTP_READAHEAD_SIZE ${aheadBytes} is not a multiple of ${SECTOR_BYTES}`);
  if (aheadBytes > MAX_READAHEAD_BYTES) throw invalid(`readahead must be at most ${MAX_READAHEAD_BYTES}`);
  const timeout = settings.timeout ?? DEFAULT_TIMEOUT;
  if (timeout < 0 || timeout > MAX_TIMEOUT) throw invalid('timeout parameter is too large or negative');
  const cookie = cookieOf(context, settings);
  const { url, ...named } = parseUrl(scheme, settings.url);
  const secret = settings['password-secret'];
  const password = secret === undefined ? named.password : context.objects.secretText(secret);
  const user = settings.username ?? named.user;
  const headers = {
    ...(cookie !== undefined && { cookie }),
    ...(user !== undefined && { authorization: basic(user, password ?? '') }),
  };
  const { http } = context.host;
  if (!http) throw new BlockError('unsupported', 'This machine has no HTTP');
  const client = http.client({ verifiesPeer: settings.sslverify !== false, maxConnections: MAX_IN_FLIGHT });
  try {
    const source = await HttpSource.open({ client, url, headers, timeoutMs: 1000 * timeout });
    return new HttpNode(scheme, client, source, aheadBytes, context);
  } catch (error) {
    client.close();
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(error.kind, `CURL: Error opening file: ${error.message}`, {
      errno: 'EINVAL',
      cause: error,
    });
  }
}

function cookieOf({ objects }: DriverContext, settings: HttpSettings): string | undefined {
  const { cookie, 'cookie-secret': secret } = settings;
  if (cookie !== undefined && secret !== undefined)
    throw invalid('curl driver cannot handle both cookie and cookie secret');
  const text = secret === undefined ? cookie : objects.secretText(secret);
  if (text !== undefined && !/^[\t\x20-\x7e\x80-\xff]*$/.test(text))
    throw invalid('A cookie is one line of text');
  return text;
}

/** RFC 7617. */
function basic(user: string, password: string): string {
  return `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`;
}

function invalid(text: string): BlockError {
  return new BlockError('invalid', text, { errno: 'EINVAL' });
}
