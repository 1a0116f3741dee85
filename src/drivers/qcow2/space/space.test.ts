import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../../base/error.js';
import { createImage } from '../../../block/create.js';
import type { NodeOptions } from '../../../block/driver.js';
import { Flag } from '../../../block/request.js';
import { resizeImage } from '../../../block/resize.js';
import { createSimulatedHost, type Simulation } from '../../../host/simulated.js';
import { hostWithout, type Lack } from '../../../../test/kit/host-variants.js';
import { TestBed, type TestDisk } from '../../../../test/kit/test-disk.js';
import { childOf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { fileDriver } from '../../file/index.js';
import { rawDriver } from '../../raw/index.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';
import { writeBuffer } from '../../../host/whole-buffers.js';

const KiB = 1024;
const MiB = 1024 * KiB;
const PATH = '/tmp/image.qcow2';
const IMAGE: NodeOptions = { driver: 'qcow2', file: { driver: 'file', filename: PATH } };
const NO_SPACE = { kind: 'no-space', errno: 'ENOSPC' } as const;

interface Machine {
  simulation: Simulation;
  bed: TestBed;
}

/** Runs `body` on a machine whose file system lacks what `lacks` says; half of all try* refuse. */
async function onMachine(lacks: Lack[], body: (machine: Machine) => Promise<void>): Promise<void> {
  const simulation = createSimulatedHost({ seed: 5, refuseProbability: 0.5 });
  const host = hostWithout(simulation.host, ...lacks);
  const bed = new TestBed(host, [fileDriver, rawDriver, qcow2Driver], '/tmp');
  await simulation.run(() => body({ simulation, bed }));
}

function make({ bed }: Machine, clusterBytes: number, sizeBytes: number): Promise<void> {
  const options = { 'cluster-size': clusterBytes };
  return createImage(bed.opener, PATH, 'qcow2', { sizeBytes, options });
}

function leave({ simulation }: Machine, bytes: number, tells: 'early' | 'late'): void {
  simulation.limitSpace({ capacityBytes: simulation.usedBytes + bytes, tells });
}

async function isRefused(request: Promise<unknown>): Promise<boolean> {
  try {
    await request;
    return false;
  } catch (error) {
    assert.ok(error instanceof BlockError && error.kind === 'no-space', String(error));
    return true;
  }
}

/** What was written, by offset. */
type Written = Map<number, Buffer>;

/** Writes pieces from `offset` on, `step` bytes apart, until one is refused; answers those that were answered. */
async function fill(disk: TestDisk, pieceBytes: number, step: number, offset = 0): Promise<Written> {
  const written: Written = new Map();
  for (let at = offset; at + pieceBytes <= disk.lengthBytes; at += step) {
    const bytes = Buffer.alloc(pieceBytes, 1 + ((at / step) % 250));
    if (await isRefused(disk.write(at, bytes))) return written;
    written.set(at, bytes);
  }
  assert.fail('the disk did not fill up');
}

async function assertHolds(disk: TestDisk, written: Written): Promise<void> {
  for (const [at, bytes] of written) assert.ok((await disk.read(at, bytes.length)).equals(bytes), `at ${at}`);
}

/** Opens the image anew: nothing is missing, nothing leaked. */
async function assertSound({ simulation, bed }: Machine, written: Written): Promise<void> {
  const disk = await bed.open(IMAGE, { readOnly: true });
  await assertHolds(disk, written);
  await disk.close();
  const content = simulation.contentOf(PATH);
  assert.ok(content);
  const found = await checkQcow2(childOf(new RecordedDisk(content)));
  assert.deepEqual(
    [found.corruptions, found.checkErrors, found.leaks, found.messages.slice(0, 3)],
    [0, 0, 0, []],
  );
}

for (const clusterBytes of [512, 4 * KiB, 64 * KiB]) {
  for (const lacks of [[], ['allocate'], ['sync'], ['sync', 'allocate']] as Lack[][]) {
    const where = `${clusterBytes}-byte clusters${lacks.map((lack) => `, no ${lack}`).join('')}`;
    test(`a full file system fails the guest's write and never the flush: ${where}`, async () => {
      for (const leftBytes of [0, 30_000, 100_000, 400_000, 777_777]) {
        await onMachine(lacks, async (machine) => {
          await make(machine, clusterBytes, 512 * MiB);
          const disk = await machine.bed.open(IMAGE);
          leave(machine, leftBytes, 'early');
          // Far apart, so that many tables are needed.
          const written = await fill(disk, 1000, Math.max(clusterBytes * 40, 20_000));
          await disk.backend.flush();
          // The image goes on: reads, overwrites, and what needs no space.
          await assertHolds(disk, written);
          for (const [at, bytes] of written) await disk.write(at, bytes.fill(0xaa));
          assert.ok(await isRefused(disk.write(500 * MiB, Buffer.alloc(64 * KiB, 1))));
          await disk.backend.flush();
          const [first] = written.keys();
          if (first !== undefined) {
            await disk.backend.discard(first, clusterBytes);
            written.delete(first);
          }
          await disk.backend.flush();
          await disk.close();
          await assertSound(machine, written);
        });
      }
    });
  }
}

test('a table whose zeroes a sparse copy left out gets its space before it changes', async () => {
  for (const clusterBytes of [16 * KiB, 64 * KiB]) {
    for (const lacks of [[], ['allocate']] as Lack[][]) {
      await onMachine(lacks, async (machine) => {
        await make(machine, clusterBytes, 256 * MiB);
        const before = await machine.bed.open(IMAGE);
        await before.write(0, Buffer.alloc(clusterBytes, 7));
        await before.close();
        await punchZeroes(machine);
        const disk = await machine.bed.open(IMAGE);
        // Room for the data of a few clusters, not for the holes in L2 table and refcount block.
        leave(machine, 0, 'early');
        assert.ok(await isRefused(disk.write(8 * MiB, Buffer.alloc(512, 1))));
        await disk.backend.flush();
        leave(machine, 3 * clusterBytes + 8 * KiB, 'early');
        const written = await fill(disk, 512, 4 * MiB, 8 * MiB);
        await disk.backend.flush();
        await disk.close();
        await assertSound(machine, written.set(0, Buffer.alloc(clusterBytes, 7)));
      });
    }
  }
});

/** As `cp --sparse=always` would have it. */
async function punchZeroes({ simulation }: Machine): Promise<void> {
  const content = simulation.contentOf(PATH);
  assert.ok(content);
  const file = await simulation.host.files.open(PATH, { write: true });
  for (let at = 0; at < content.length; at += 4096)
    if (content.subarray(at, at + 4096).every((byte) => byte === 0)) await file.punchHole(at, 4096);
  await file.close();
}

test('zeroes, discards and growing on a full file system lose nothing either', async () => {
  await onMachine([], async (machine) => {
    const clusterBytes = 512;
    await make(machine, clusterBytes, 4 * MiB);
    const disk = await machine.bed.open(IMAGE);
    const written = new Map([[0, Buffer.alloc(100 * clusterBytes, 3)]]);
    await disk.write(0, Buffer.alloc(100 * clusterBytes, 3));
    await disk.backend.flush();
    let refused = 0;
    for (let turn = 0; turn < 40; turn++) {
      leave(machine, turn % 4 === 0 ? 0 : 2 * KiB, 'early');
      const at = MiB + turn * 40 * KiB;
      if (await isRefused(disk.backend.writeZeroes(at, 4 * KiB, turn % 2 ? Flag.mayUnmap : Flag.none)))
        refused++;
      if (await isRefused(disk.backend.truncate(disk.lengthBytes + 16 * MiB))) refused++;
      if (await isRefused(disk.write(at + 8 * KiB, Buffer.alloc(clusterBytes, 9)))) refused++;
      else written.set(at + 8 * KiB, Buffer.alloc(clusterBytes, 9));
      await disk.backend.flush();
    }
    assert.ok(refused > 20, `${refused} refused`);
    await disk.close();
    await assertSound(machine, written);
  });
});

test('where the storage tells late the flush fails, again and again, until space is freed: nothing is forgotten', async () => {
  for (const clusterBytes of [512, 64 * KiB]) {
    await onMachine([], async (machine) => {
      await make(machine, clusterBytes, 64 * MiB);
      const disk = await machine.bed.open(IMAGE);
      leave(machine, 10 * KiB, 'late');
      const written: Written = new Map();
      for (let i = 0; i < 20; i++) {
        const bytes = Buffer.alloc(5000, i + 1);
        await disk.write(i * MiB, bytes);
        written.set(i * MiB, bytes);
        await assert.rejects(disk.backend.flush(), i < 1 && clusterBytes === 512 ? () => true : NO_SPACE);
      }
      await assertHolds(disk, written);
      machine.simulation.limitSpace(undefined);
      await disk.backend.flush();
      await disk.close();
      await assertSound(machine, written);
    });
  }
});

test('an end without space says how much is lost', async () => {
  await onMachine([], async (machine) => {
    await make(machine, 64 * KiB, 64 * MiB);
    const disk = await machine.bed.open(IMAGE);
    await disk.write(0, Buffer.alloc(64 * KiB, 1));
    await disk.backend.flush();
    leave(machine, 0, 'late');
    for (let i = 1; i < 6; i++) await disk.write(i * MiB, Buffer.alloc(64 * KiB, i));
    await assert.rejects(disk.backend.flush(), NO_SPACE);
    const message = `The last ${5 * 64 * KiB} bytes written to '${PATH}' are lost: No space left on device`;
    await assert.rejects(disk.close(), { ...NO_SPACE, message });
    machine.simulation.limitSpace(undefined);
    const again = await machine.bed.open(IMAGE, { readOnly: true });
    await assertHolds(again, new Map([[0, Buffer.alloc(64 * KiB, 1)]]));
    await again.close();
  });
});

test('an image in a window of fixed size ends there: the write finds out, not the flush', async () => {
  await onMachine([], async (machine) => {
    const clusterBytes = 4 * KiB;
    await make(machine, clusterBytes, 512 * MiB);
    const file = await machine.simulation.host.files.open(PATH, { write: true });
    await writeBuffer(file, MiB, Buffer.alloc(64 * KiB, 0x77));
    await file.close();
    const window = { driver: 'raw', size: MiB, file: { driver: 'file', filename: PATH } };
    const disk = await machine.bed.open({ driver: 'qcow2', file: window });
    const written = await fill(disk, 512, 2 * MiB);
    assert.ok(written.size > 20);
    await disk.backend.flush();
    await disk.close();
    const behind = machine.simulation.contentOf(PATH)?.subarray(MiB);
    assert.ok(behind?.equals(Buffer.alloc(64 * KiB, 0x77)), 'what lies behind the window');
    await assertSound(machine, written);
  });
});

test('a file with data ends where a cluster does, whatever of the last one was written; a new one with its tables', async () => {
  for (const lacks of [[], ['sync']] as Lack[][]) {
    for (const clusterBytes of [4 * KiB, 64 * KiB]) {
      await onMachine(lacks, async (machine) => {
        const sizeBytes = 3 * MiB + 512;
        await make(machine, clusterBytes, sizeBytes);
        const sizeNow = (): number => machine.simulation.contentOf(PATH)?.length ?? 0;
        // The header, refcounts, and a sector of the L1 table.
        assert.equal(sizeNow(), 3 * clusterBytes + 512, 'made');
        const disk = await machine.bed.open(IMAGE);
        for (const at of [512, MiB + 3000, 2 * MiB + clusterBytes - 512, sizeBytes - 512]) {
          await disk.write(at, Buffer.alloc(512, 1));
          assert.equal(sizeNow() % clusterBytes, 0, `written at ${at}`);
        }
        for (let pages = 1; pages < 20; pages++) {
          leave(machine, pages * 4 * KiB, 'early');
          await fill(disk, clusterBytes, clusterBytes, clusterBytes);
          assert.equal(sizeNow() % clusterBytes, 0, `full at ${pages} pages`);
        }
        await disk.close();
        assert.equal(sizeNow() % clusterBytes, 0, 'closed');
      });
    }
  }
});

test('without room for what was to be preallocated a disk has its old size, and gives back what it took', async () => {
  for (const mode of ['falloc', 'full'] as const)
    await onMachine([], async (machine) => {
      await make(machine, 4 * KiB, 64 * KiB);
      const disk = await machine.bed.open(IMAGE);
      await disk.write(0, Buffer.alloc(64 * KiB, 1));
      await disk.backend.flush();
      leave(machine, 100 * KiB, 'early');
      await assert.rejects(resizeImage(disk.backend, MiB, mode), NO_SPACE);
      assert.equal(disk.node.lengthBytes, 64 * KiB);
      machine.simulation.limitSpace(undefined);
      await resizeImage(disk.backend, MiB, mode);
      const content = await disk.read(0, MiB);
      assert.ok(content.every((byte, at) => byte === (at < 64 * KiB ? 1 : 0)));
      await disk.close();
      await assertSound(machine, new Map([[0, Buffer.alloc(64 * KiB, 1)]]));
    });
});
