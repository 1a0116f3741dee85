import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { NodeOptions } from '../../src/block/driver.js';
import { CertificateFolders } from '../kit/certificates.js';
import { FileServer } from '../kit/file-server.js';
import type { TestBed, TestDisk } from '../kit/test-disk.js';

const KiB = 1024;

/** Where images are opened, of which a.raw is one with a pattern. */
interface Bed extends TestBed {
  with(options: NodeOptions, body: (disk: TestDisk) => unknown, readOnly?: boolean): Promise<unknown>;
  refused(options: NodeOptions, message: RegExp): Promise<void>;
}

type Show = (bed: Bed) => Promise<void>;

/** What the options of files on web servers do. */
export function webOptions(driver: 'http' | 'https'): Record<string, Show> {
  const onServer =
    (body: (bed: Bed, server: FileServer, url: (path: string) => NodeOptions) => Promise<void>): Show =>
    async (bed) => {
      const tls = driver === 'https' ? (certificate ??= newCertificate(bed.folder)) : undefined;
      const server = await FileServer.start(bed.folder, tls);
      await bed.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'password' });
      // Nobody knows who has signed the certificate.
      const trust = driver === 'https' ? { sslverify: false } : {};
      const url = (path: string): NodeOptions => ({
        ...{ driver, 'read-only': true, ...trust },
        url: `${driver}://127.0.0.1:${server.port}${path}`,
      });
      await body(bed, server, url).finally(() => server.close());
    };
  const readTwo = (disk: TestDisk): Promise<Buffer> => disk.read(0, 2 * KiB);
  const shows: Record<string, Show> = {
    url: onServer(async (bed, _server, url) => {
      await bed.with(
        url('/f/a.raw'),
        async (disk) => assert.equal((await disk.read(5 * KiB, 1))[0], 5),
        true,
      );
      await assert.rejects(bed.open(url('/f/nothing'), { readOnly: true }), {
        message: /returned error: 404$/,
      });
    }),
    readahead: onServer(async (bed, server, url) => {
      await bed.with({ ...url('/f/a.raw'), readahead: 4 * KiB }, readTwo, true);
      assert.deepEqual(server.ranges(), [`bytes=0-${6 * KiB - 1}`]);
      await bed.refused({ ...url('/f/a.raw'), readahead: 1000 }, /not a multiple of 512/);
      await bed.refused({ ...url('/f/a.raw'), readahead: 2 ** 30 }, /readahead must be at most/);
    }),
    timeout: onServer(async (bed, _server, url) => {
      await bed.with(
        { ...url('/silent/a.raw'), timeout: 1 },
        (disk) => assert.rejects(readTwo(disk), { errno: 'EIO' }),
        true,
      );
      await bed.refused({ ...url('/f/a.raw'), timeout: -1 }, /timeout parameter is too large or negative/);
    }),
    username: onServer(async (bed, _server, url) => {
      await bed.with({ ...url('/private/a.raw'), username: 'user', 'password-secret': 's' }, readTwo, true);
      await bed.refused(
        { ...url('/private/a.raw'), username: 'other', 'password-secret': 's' },
        /error: 401/,
      );
    }),
    'password-secret': onServer(async (bed, _server, url) => {
      await bed.refused({ ...url('/private/a.raw'), username: 'user' }, /error: 401/);
      await bed.refused({ ...url('/private/a.raw'), 'password-secret': 'x' }, /No secret with id 'x'/);
    }),
    cookie: onServer(async (bed, server, url) => {
      await bed.with({ ...url('/f/a.raw'), cookie: 'a=b' }, readTwo, true);
      assert.deepEqual(new Set(server.requests.map(({ headers }) => headers.cookie)), new Set(['a=b']));
      await bed.refused(
        { ...url('/f/a.raw'), cookie: 'a', 'cookie-secret': 's' },
        /both cookie and cookie secret/,
      );
      await bed.refused({ ...url('/f/a.raw'), cookie: 'a\r\nX: y' }, /one line/);
    }),
    'cookie-secret': onServer(async (bed, server, url) => {
      await bed.with({ ...url('/f/a.raw'), 'cookie-secret': 's' }, readTwo, true);
      assert.deepEqual(new Set(server.requests.map(({ headers }) => headers.cookie)), new Set(['password']));
    }),
  };
  if (driver === 'https')
    shows['sslverify'] = onServer(async (bed, _server, url) => {
      await bed.refused({ ...url('/f/a.raw'), sslverify: true }, /server certificate verification failed/);
    });
  return shows;
}

interface Certificate {
  key: Buffer;
  cert: Buffer;
}

/** Made once: it takes a while. */
let certificate: Certificate | undefined;

function newCertificate(folder: string): Certificate {
  const folders = new CertificateFolders(folder);
  folders.authority('authority');
  folders.trusting('server', 'authority');
  folders.certificate('server', 'server', '/CN=localhost', 'authority');
  const read = (name: string): Buffer => readFileSync(folders.path('server', name));
  return { key: read('server-key.pem'), cert: read('server-cert.pem') };
}
