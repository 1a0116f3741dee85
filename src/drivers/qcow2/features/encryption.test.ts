import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { test } from 'node:test';
import { createImage } from '../../../block/create.js';
import type { NodeOptions } from '../../../block/driver.js';
import { createRealHost } from '../../../host/real.js';
import { formatConformance } from '../../../../test/kit/conformance.js';
import { TestBed, withFolder } from '../../../../test/kit/test-disk.js';
import { fileDriver } from '../../file/index.js';
import { qcow2Driver } from '../driver.js';

const KiB = 1024;
const CLUSTER = 4 * KiB;
/** What is unlocked fastest. */
const LUKS = { format: 'luks', 'iter-time': 0, 'cipher-alg': 'aes-128', 'cipher-mode': 'cbc' };
const WAYS: ReadonlyArray<readonly [name: 'aes' | 'luks', encrypt: { [key: string]: string | number }]> = [
  ['aes', { format: 'qcow' }],
  ['luks', LUKS],
];

async function make(bed: TestBed, filename: string, options: NodeOptions, sizeBytes: number): Promise<void> {
  if (!bed.graph.objects.find('s'))
    await bed.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'password' });
  await createImage(bed.opener, filename, 'qcow2', {
    sizeBytes,
    options: { 'cluster-size': CLUSTER, ...options },
  });
}

const opened = (filename: string, format: string): NodeOptions => ({
  driver: 'qcow2',
  file: { driver: 'file', filename },
  encrypt: { format, 'key-secret': 's' },
});

formatConformance({
  name: 'qcow2, encrypted',
  driver: qcow2Driver,
  unitBytes: CLUSTER,
  runs: 1,
  create: async (bed, sizeBytes, backing) => {
    const filename = bed.newPath('qcow2');
    await make(bed, filename, { encrypt: { ...LUKS, 'key-secret': 's' } }, sizeBytes);
    return { ...opened(filename, 'luks'), ...(backing && { backing }) };
  },
});

/** An image in a file, and what may be asked of it. */
async function withImage(
  encrypt: NodeOptions,
  body: (bed: TestBed, path: string) => Promise<void>,
): Promise<void> {
  await withFolder(async (folder) => {
    const bed = new TestBed(createRealHost(), [fileDriver, qcow2Driver], folder);
    const path = `${folder}/image`;
    await make(bed, path, { encrypt: { ...encrypt, 'key-secret': 's' } }, 64 * KiB);
    await body(bed, path);
  });
}

/** Changes 32 bits of an image. */
async function poke(path: string, at: number, value: number): Promise<void> {
  const bytes = await readFile(path);
  bytes.writeUInt32BE(value, at);
  await writeFile(path, bytes);
}

/** Of a version 3 header that new images have: extensions begin behind 112 bytes. */
const EXTENSION = 112;

for (const [at, value, message] of [
  [EXTENSION, 0x12345678, /^CRYPTO header extension size 0, but expected size 16$/],
  [EXTENSION + 12, 513, /^Encryption header offset '513' is not a multiple of cluster size '4096'$/],
  [EXTENSION + 12, 0, /^Encryption header offset invalid$/],
  [EXTENSION + 16, 1, /^Encryption header offset invalid$/],
  [EXTENSION + 20, 512, /^Encryption header is shorter than its key slots/],
  [32, 7, /^Unsupported encryption method 7$/],
  [32, 1, /^Header reported 'aes' encryption format but options specify 'luks'$/],
  [32, 0, /^No encryption in image header, but options specified format 'luks'$/],
] as const)
  test(`an encryption header that is wrong at ${at} is refused: ${message.source}`, () =>
    withImage(LUKS, async (bed, path) => {
      await poke(path, at, value);
      await assert.rejects(bed.open(opened(path, 'luks')), { message });
    }));

test('what is on disk is not what the guest wrote, and the same bytes look different elsewhere', async () => {
  for (const [name, encrypt] of WAYS)
    await withImage(encrypt, async (bed, path) => {
      const disk = await bed.open(opened(path, name));
      await disk.write(0, Buffer.alloc(1024, 'secret text. '));
      await disk.close();
      const bytes = await readFile(path);
      assert.equal(bytes.indexOf('secret text'), -1);
      const again = await bed.open(opened(path, name));
      assert.equal((await again.read(0, 11)).toString(), 'secret text');
      await again.close();
    });
});

test('a machine for guests does not open images of the older way', () =>
  withImage({ format: 'qcow' }, async (bed, path) => {
    bed.graph.objects.isOfMachine = true;
    await assert.rejects(bed.open(opened(path, 'aes')), {
      message: /no longer supported in system emulators/,
    });
  }));

test('passwords of an image are added and erased, and nothing is leaked by that', () =>
  withImage(LUKS, async (bed, path) => {
    await bed.graph.objects.add({ 'qom-type': 'secret', id: 't', data: 'another' });
    const disk = await bed.open(opened(path, 'luks'));
    await disk.write(0, Buffer.from('text'));
    const change = { state: 'active', 'new-secret': 't', 'iter-time': 0 } as const;
    await disk.node.instance.amend?.({ keySlots: { amendment: change, isForced: false } });
    await disk.close();
    const other = await bed.open({ ...opened(path, 'luks'), encrypt: { format: 'luks', 'key-secret': 't' } });
    assert.equal((await other.read(0, 4)).toString(), 'text');
    const erase = { state: 'inactive', keyslot: 0 } as const;
    await other.node.instance.amend?.({ keySlots: { amendment: erase, isForced: false } });
    const { corruptions, leaks } = (await other.node.instance.check?.('none', () => undefined)) ?? {};
    assert.deepEqual([corruptions, leaks], [0, 0]);
    await other.close();
    await assert.rejects(bed.open(opened(path, 'luks')), { message: /Invalid password/ });
  }));

test('an encrypted image takes no compressed cluster', () =>
  withImage(LUKS, async (bed, path) => {
    const disk = await bed.open(opened(path, 'luks'));
    await assert.rejects(async () => disk.node.instance.map?.writeCompressed?.(0, Buffer.alloc(CLUSTER)), {
      errno: 'ENOTSUP',
    });
    await disk.close();
  }));

test('an image is resized, its last sector in part, and made of version 2, encrypted as before', () =>
  withImage(LUKS, async (bed, path) => {
    const disk = await bed.open(opened(path, 'luks'));
    await disk.write(0, Buffer.alloc(64 * KiB, 1));
    await disk.backend.truncate(9 * KiB + 512);
    await disk.backend.writeZeroes(0, CLUSTER);
    await disk.backend.truncate(32 * KiB);
    await disk.node.instance.amend?.({ version: 2 });
    await disk.close();
    const again = await bed.open(opened(path, 'luks'));
    const bytes = await again.read(0, 32 * KiB);
    await again.close();
    const expected = Buffer.alloc(32 * KiB);
    expected.fill(1, CLUSTER, 9 * KiB + 512);
    assert.ok(bytes.equals(expected));
  }));
