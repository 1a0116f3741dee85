import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createImage } from '../../block/create.js';
import { deferred } from '../../base/async.js';
import { errnoError } from '../../base/error.js';
import { KiB } from '../../base/limits.js';
import type { NodeOptions } from '../../block/driver.js';
import { fullFilename } from '../../block/full-filename.js';
import type { HttpClient } from '../../host/http.js';
import { createRealHost } from '../../host/real.js';
import { FileServer } from '../../../test/kit/file-server.js';
import { assertSameBytes, TestBed, withFolder } from '../../../test/kit/test-disk.js';
import { allDrivers } from '../index.js';
import { httpFilename } from './address.js';
import { MAX_IN_FLIGHT, MAX_PIECE_BYTES, ReadAhead } from './read-ahead.js';
import { HttpSource } from './source.js';

const SIZE = 700 * KiB + 300;
const content = randomBytes(SIZE);

class WebBed extends TestBed {
  readonly lines: string[] = [];
  readonly server: FileServer;

  constructor(server: FileServer, folder: string) {
    super(createRealHost(), allDrivers, folder);
    this.server = server;
    this.graph.onDriverLine = (line) => void this.lines.push(line);
  }

  url(path: string): string {
    return `http://127.0.0.1:${this.server.port}${path}`;
  }

  options(path: string, more: NodeOptions = {}): NodeOptions {
    return { driver: 'http', url: this.url(path), ...more };
  }
}

function onServer(body: (bed: WebBed) => Promise<void>): () => Promise<void> {
  return () =>
    withFolder(async (folder) => {
      writeFileSync(join(folder, 'file'), content);
      const server = await FileServer.start(folder);
      await body(new WebBed(server, folder)).finally(() => server.close());
    });
}

test(
  'reads of any place, many at once, are of the file; beyond its end are zeroes',
  onServer(async (bed) => {
    const disk = await bed.open(bed.options('/f/file', { readahead: 16 * KiB }), { readOnly: true });
    const expected = Buffer.concat([content, Buffer.alloc(disk.lengthBytes - SIZE)]);
    assert.equal(disk.lengthBytes, Math.ceil(SIZE / 512) * 512);
    assertSameBytes(await disk.read(SIZE + 1, 1), Buffer.alloc(1), 'behind the end of the file');
    for (let round = 0; round < 10; round++) {
      const reads = Array.from({ length: 20 }, async () => {
        const offset = Math.floor(Math.random() * disk.lengthBytes);
        const length = 1 + Math.floor(Math.random() * Math.min(100 * KiB, disk.lengthBytes - offset));
        assertSameBytes(
          await disk.read(offset, length),
          expected.subarray(offset, offset + length),
          `at ${offset}`,
        );
      });
      await Promise.all(reads);
    }
    assertSameBytes(await disk.readAll(), expected, 'all of it');
    await disk.close();
  }),
);

test(
  'who reads on gets what was read ahead, and nothing comes twice, over one connection',
  onServer(async (bed) => {
    const disk = await bed.open(bed.options('/f/file', { readahead: 64 * KiB }), { readOnly: true });
    for (let at = 0; at + 10 * KiB <= SIZE; at += 10 * KiB) await disk.read(at, 10 * KiB);
    let next = 0;
    for (const range of bed.server.ranges()) {
      const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(range) ?? [];
      assert.equal(Number(first), next, range);
      next = Number(last) + 1;
    }
    assert.equal(next, SIZE);
    assert.ok(bed.server.ranges().length < 15, String(bed.server.ranges().length));
    assert.equal(new Set(bed.server.requests.map(({ port }) => port)).size, 1);
    await disk.close();
  }),
);

test(
  'what a server does wrong is told, and an I/O error',
  onServer(async (bed) => {
    const opening: Array<[path: string, text: RegExp]> = [
      ['/noranges/file', /: Server does not support 'range' \(byte ranges\)\.$/],
      ['/nolength/file', /: Server didn't report file size\.$/],
      ['/loop', /: Maximum \(30\) redirects followed$/],
      ['/away?to=ftp://127.0.0.1/', /: Protocol "ftp" not supported$/],
      ['/away?to=http://[', /: URL using bad\/illegal format or missing URL$/],
      ['/status/503', /: The requested URL returned error: 503$/],
    ];
    for (const [path, message] of opening) {
      await assert.rejects(bed.open(bed.options(path), { readOnly: true }), { message }, path);
    }
    const reading: Array<[manner: string, text: RegExp]> = [
      ['ignores', /Server does not support 'range'/],
      ['cut', /^curl: transfer closed with \d+ bytes remaining to read$/],
      ['less', /has not sent the range that was asked for$/],
    ];
    for (const [manner, text] of reading) {
      const disk = await bed.open(bed.options(`/${manner}/file`), { readOnly: true });
      await assert.rejects(disk.read(4 * KiB, 400 * KiB), { errno: 'EIO', message: 'Input/output error' });
      assert.match(bed.lines.pop() ?? '', text);
      await disk.close();
    }
    const { port } = bed.server;
    await bed.server.close();
    const refused =
      /^CURL: Error opening file: Failed to connect to 127.0.0.1 port \d+ after \d+ ms: Couldn't connect/;
    const options = { driver: 'http', url: `http://127.0.0.1:${port}/f/file` };
    await assert.rejects(bed.open(options, { readOnly: true }), { message: refused });
  }),
);

test(
  'a file that changes is not mixed with what it was',
  onServer(async (bed) => {
    const disk = await bed.open(bed.options('/tagged/file', { readahead: 0 }), { readOnly: true });
    await disk.read(0, KiB);
    utimesSync(join(bed.folder, 'file'), 1, 1);
    await assert.rejects(disk.read(8 * KiB, KiB), { errno: 'EIO' });
    assert.equal(bed.lines.pop(), 'curl: The file has changed on the server');
    await disk.close();
  }),
);

test(
  'a redirect is followed once; what may not be told to others is not',
  onServer(async (bed) => {
    const other = await FileServer.start(bed.folder);
    const to = encodeURIComponent(`http://127.0.0.1:${other.port}/f/file`);
    const private_ = { cookie: 'a=b', username: 'user' };
    const disk = await bed.open(bed.options(`/away?to=${to}`, { readahead: 0, ...private_ }), {
      readOnly: true,
    });
    assertSameBytes(await disk.read(KiB, KiB), content.subarray(KiB, 2 * KiB), 'read elsewhere');
    await disk.read(8 * KiB, KiB);
    await disk.close();
    assert.equal(bed.server.requests.length, 1);
    assert.equal(bed.server.requests[0]?.headers.cookie, 'a=b');
    assert.equal(other.requests.length, 3);
    for (const { headers } of other.requests)
      assert.deepEqual([headers.cookie, headers.authorization], [undefined, undefined]);
    await other.close();
  }),
);

test('a place that a redirect led to is left when it is gone', async () => {
  const asked: string[] = [];
  let goneAt = '';
  const client: HttpClient = {
    async request({ url, method }, onHead) {
      asked.push(`${method} ${url.pathname}`);
      const place = `/${asked.length}`;
      if (url.pathname === '/start') return void onHead({ status: 307, headers: { location: place } });
      if (url.pathname === goneAt) return void onHead({ status: 403, headers: {} });
      const headers = { 'content-length': '4', 'accept-ranges': 'bytes', 'content-range': 'bytes 0-3/4' };
      onHead({ status: method === 'GET' ? 206 : 200, headers })?.(Buffer.from('text'));
    },
    close: () => undefined,
  };
  const url = new URL('http://server/start');
  const source = await HttpSource.open({ client, url, headers: {}, timeoutMs: 0 });
  await source.fetch(0, 4, () => undefined);
  goneAt = '/1';
  await source.fetch(0, 4, () => undefined);
  const expected = ['HEAD /start', 'HEAD /1', 'GET /1', 'GET /1', 'GET /start', 'GET /5'];
  assert.deepEqual(asked, expected);
});

test('so many requests at a time, and no more', async () => {
  let [inFlight, most] = [0, 0];
  const going = deferred();
  const ahead = new ReadAhead(
    async (start, end, take) => {
      most = Math.max(most, ++inFlight);
      await going.promise;
      take(Buffer.alloc(end - start, start / KiB));
      inFlight--;
    },
    100 * KiB,
    0,
  );
  const reads = Array.from({ length: 100 }, async (_, index) => {
    const target = Buffer.alloc(KiB);
    await ahead.read(index * KiB, target);
    assert.equal(target[0], index);
  });
  going.resolve();
  await Promise.all(reads);
  assert.equal(most, MAX_IN_FLIGHT);
});

test('a read that failed leaves its memory alone, also where more of it was on its way', async () => {
  const going = deferred();
  const ahead = new ReadAhead(
    async (start, end, take) => {
      if (start === 0) throw errnoError('EIO');
      await going.promise;
      take(Buffer.alloc(end - start, 0xbb));
    },
    2 * MAX_PIECE_BYTES,
    0,
  );
  const target = Buffer.alloc(MAX_PIECE_BYTES + KiB);
  const read = ahead.read(0, target).catch((error: unknown) => {
    target.fill(0);
    return error;
  });
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => void setImmediate(resolve));
  going.resolve();
  assert.match(String(await read), /EIO|Input\/output/);
  for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => void setImmediate(resolve));
  assert.equal(
    target.findIndex((byte) => byte !== 0),
    -1,
  );
});

test('what failed is asked for anew', async () => {
  let failing = true;
  const ahead = new ReadAhead(
    async (start, end, take) => {
      if (failing) throw errnoError('EIO');
      take(Buffer.alloc(end - start, 1));
    },
    KiB,
    0,
  );
  await assert.rejects(ahead.read(0, Buffer.alloc(512)), { errno: 'EIO' });
  failing = false;
  await ahead.read(0, Buffer.alloc(512));
});

test(
  'a node that nobody wants any more ends what a silent server holds',
  onServer(async (bed) => {
    const disk = await bed.open(bed.options('/silent/file', { timeout: 0 }), { readOnly: true });
    const read = assert.rejects(disk.read(0, KiB), { errno: 'ECANCELED' });
    while (bed.server.requests.length < 2) await bed.host.clock.macrotask();
    disk.node.instance.cancelInFlight?.();
    await read;
    await disk.close();
  }),
);

test(
  'a connection that the server has ended meanwhile is no error',
  onServer(async (bed) => {
    const disk = await bed.open(bed.options('/once/file', { readahead: 0 }), { readOnly: true });
    await disk.read(0, KiB);
    await disk.read(KiB, KiB);
    assert.deepEqual(bed.lines, []);
    assert.ok(bed.server.requests.length > 3, 'no request met a connection that had ended');
    await disk.close();
  }),
);

test(
  'an image is probed, and its backing file is beside it; nobody writes',
  onServer(async (bed) => {
    await createImage(bed.opener, join(bed.folder, 'over.qcow2'), 'qcow2', {
      sizeBytes: 512 * KiB,
      backingFile: 'file',
      backingFormat: 'raw',
    });
    const context = { readOnly: true, discard: 'unmap' } as const;
    const disk = await bed.attach(await bed.opener.openImage(bed.url('/f/over.qcow2'), undefined, context), {
      readOnly: true,
    });
    assert.equal(disk.node.driver.name, 'qcow2');
    assert.equal(fullFilename(disk.node.child('backing').node), bed.url('/f/file'));
    assertSameBytes(await disk.readAll(), content.subarray(0, 512 * KiB), 'through the overlay');
    await disk.close();
    const message = 'curl driver does not support writes';
    await assert.rejects(bed.open(bed.options('/f/file')), { message, errno: 'EACCES' });
    const auto = bed.options('/f/file', { 'auto-read-only': true });
    await assert.rejects(bed.open(auto), { message: 'Block node is read-only' });
  }),
);

test('a name says what a node is, or JSON does', () => {
  const url = 'http://h/x';
  assert.equal(httpFilename({ url, timeout: 3, readahead: 512 }), url);
  assert.equal(httpFilename({ url, sslverify: true }), url);
  for (const more of [{ sslverify: false }, { cookie: 'a' }, { 'cookie-secret': 's' }, { username: 'u' }])
    assert.equal(httpFilename({ url, ...more }), undefined);
});
