import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../drivers/index.js';
import { qcow2Driver } from '../drivers/qcow2/driver.js';
import { rawDriver } from '../drivers/raw/index.js';
import { createSimulatedHost } from '../host/simulated.js';
import { TestBed, type TestDisk } from '../../test/kit/test-disk.js';
import { probedWarning } from './format-guard.js';
import { writeBuffer } from '../host/whole-buffers.js';
import { cutMemory } from '../../test/kit/memory-pieces.js';
import { whileChanging } from '../../test/kit/unstable-memory.js';

const QCOW2 = Buffer.from('QFI\xfb\0\0\0\x03', 'latin1');
const REFUSED = { kind: 'permission', errno: 'EPERM', message: 'Operation not permitted' };
/** Files of other formats than raw, by how they begin. */
const FOREIGN: ReadonlyArray<[string, string]> = [
  ['vmdk', 'KDMV\x01\0\0\0'],
  ['vmdk', 'COWD'],
  ['vmdk', '# Disk DescriptorFile\nversion=1\nCID=1'],
  ['vmdk', '\n# a\r\n  \nversion=3\r\n'],
  ['vdi', `<<< Oracle VM VirtualBox Disk Image >>>\n`.padEnd(64, '\0') + '\x7f\x10\xda\xbe'],
  ['vpc', 'conectix'],
  ['vhdx', 'vhdxfile'],
  ['qed', 'QED\0'],
  ['qcow', 'QFI\xfb\0\0\0\x01'],
  ['parallels', 'WithoutFreeSpace\x02\0\0\0'],
  ['parallels', 'WithouFreSpacExt\x02\0\0\0'],
  ['luks', 'LUKS\xba\xbe\0\x01'],
  [
    'bochs',
    'Bochs Virtual HD Image'.padEnd(32, '\0') +
      'Redolog'.padEnd(16, '\0') +
      'Growing'.padEnd(16, '\0') +
      '\0\0\x02\0',
  ],
  ['cloop', '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n'],
];
/** What only looks a little like them. */
const RAW = [
  'QFI',
  'QFI\xfb\0\0\0\0',
  'KDM',
  'LUKS\xba\xbe\0\x02',
  'WithoutFreeSpace\x03\0\0\0',
  '#!/bin/sh\nversion=4\n',
];

async function withImage(
  content: Uint8Array,
  format: string | undefined,
  body: (disk: TestDisk, bed: TestBed) => Promise<void>,
): Promise<string[]> {
  const simulation = createSimulatedHost({ seed: 1 });
  const warned: string[] = [];
  await simulation.run(async () => {
    const bed = new TestBed(simulation.host, allDrivers, '/tmp');
    bed.opener.onProbed = (name, format, readOnly) => warned.push([name, format.name, readOnly].join());
    const file = await simulation.host.files.open('/tmp/image', { write: true, create: true });
    await writeBuffer(file, 0, Buffer.concat([content, Buffer.alloc(65536 - content.length)]));
    await file.close();
    const disk = await bed.attach(await bed.opener.openImage('/tmp/image', format, { readOnly: false }));
    await body(disk, bed);
    await disk.close();
  });
  return warned;
}

test('a guessed raw image cannot be made to look like another format', async () => {
  const warned = await withImage(Buffer.alloc(0), undefined, async (disk) => {
    for (const [, beginning] of [...FOREIGN, ['qcow2', QCOW2.toString('latin1')]] as const) {
      const bytes = Buffer.from(beginning, 'latin1');
      await assert.rejects(disk.write(0, bytes), REFUSED, beginning);
      const sectors = Buffer.concat([bytes, Buffer.alloc(4096 - bytes.length)]);
      await assert.rejects(disk.write(0, sectors), REFUSED, beginning);
      await assert.rejects(disk.write(0, sectors.subarray(0, 512)), REFUSED, beginning);
    }
    assert.deepEqual(await disk.read(0, 4096), Buffer.alloc(4096));
    for (const beginning of RAW) await disk.write(0, Buffer.from(beginning.padEnd(512, '\0'), 'latin1'));
    // What lies elsewhere looks like nothing.
    await disk.write(512, QCOW2);
    await disk.write(1, QCOW2);
    await disk.backend.writeZeroes(0, 600);
  });
  assert.deepEqual(warned, ['/tmp/image,raw,false']);
});

test('nor in pieces, one after the other or at once', async () => {
  for (const atOnce of [false, true])
    await withImage(Buffer.alloc(0), undefined, async (disk) => {
      const pieces = [0, 1, 2, 3, 4, 5, 6, 7].map(
        (i) => (): Promise<string> =>
          disk.write(i, QCOW2.subarray(i, i + 1)).then(
            () => 'written',
            (error: Error) => error.message,
          ),
      );
      const answers: string[] = [];
      if (atOnce) answers.push(...(await Promise.all(pieces.map((piece) => piece()))));
      else for (const piece of pieces) answers.push(await piece());
      assert.equal(answers.filter((answer) => answer === REFUSED.message).length, 1);
      assert.notDeepEqual(await disk.read(0, 8), QCOW2);
    });
});

test('zeroing a part of the sector is looked at too', async () => {
  // Zeroes at bytes 4 to 6 make a version of what was none.
  const almost = Buffer.from('QFI\xfb\0\0\0\0', 'latin1');
  await withImage(almost, undefined, async (disk) => {
    await assert.rejects(disk.write(7, Buffer.from([3])), REFUSED);
    await disk.backend.writeZeroes(4, 3);
    await disk.write(0, Buffer.from('LUKS\xba\xbe\x01\x01', 'latin1'));
    await assert.rejects(disk.backend.writeZeroes(6, 1), REFUSED);
  });
});

test('an image that was said to be raw takes any content, and nobody is warned', async () => {
  const warned = await withImage(Buffer.alloc(0), 'raw', async (disk) => {
    await disk.write(0, QCOW2);
    assert.deepEqual(await disk.read(0, 8), QCOW2);
  });
  assert.deepEqual(warned, []);
  assert.equal(probedWarning('x', rawDriver, true), '');
  assert.equal(probedWarning('x', qcow2Driver, false), '');
});

test('an image of another format is not taken for raw, and refused by name where livedisk lacks it', async () => {
  for (const [format, beginning] of FOREIGN) {
    const bytes = Buffer.from(beginning, 'latin1');
    const isKnown = allDrivers.some(({ name }) => name === format);
    // There is no more of it than its beginning.
    const unsupported = isKnown
      ? { name: 'BlockError' }
      : { kind: 'unsupported', message: `Image format '${format}' is not supported by livedisk` };
    await assert.rejects(
      withImage(bytes, undefined, async () => undefined),
      unsupported,
    );
    await withImage(bytes, 'raw', async (disk) => {
      assert.deepEqual(await disk.read(0, bytes.length), bytes);
    });
  }
  for (const beginning of RAW) {
    const warned = await withImage(Buffer.from(beginning, 'latin1'), undefined, async () => undefined);
    assert.deepEqual(warned, ['/tmp/image,raw,false'], beginning);
  }
});

test('what a guest changes while it is looked at cannot slip through', async () => {
  await withImage(Buffer.alloc(0), undefined, async (disk) => {
    for (let n = 0; n < 20; n++) {
      const memory = cutMemory(1024, [600, 100], 5);
      const request = disk.backend.requests.take().ask('write', 0, 1024);
      request.setBuffers(memory.buffers, 5);
      request.isStable = false;
      const harmless = Buffer.alloc(1024, 1);
      const harmful = Buffer.concat([QCOW2, Buffer.alloc(1024 - QCOW2.length)]);
      memory.copyFrom(harmless, 0);
      const values = [harmless, ...Array.from({ length: n }, () => harmless), harmful];
      const writing = disk.backend.run(request);
      await whileChanging(writing, values, (bytes) => memory.copyFrom(bytes, 0)).catch(() => undefined);
      disk.backend.requests.give(request);
      assert.notDeepEqual(await disk.read(0, QCOW2.length), QCOW2, `after ${n} looks`);
    }
  });
});
