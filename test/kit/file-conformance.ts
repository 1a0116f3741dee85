import assert from 'node:assert/strict';
import fc from 'fast-check';
import { BlockError } from '../../src/base/error.js';
import { IoVector } from '../../src/base/io-vector.js';
import { MiB } from '../../src/base/limits.js';
import type { Host, HostFile } from '../../src/host/host.js';
import type { Check } from './host-conformance.js';
import { type Cuts, cutMemory, isTidy } from './memory-pieces.js';
import { assertSameBytes } from './test-disk.js';
import { readBuffer, tryReadBuffer, writeBuffer } from '../../src/host/whole-buffers.js';

/** What every host's files must do. */
export function fileConformance(check: Check): void {
  check('a file behaves like an array of bytes', async ({ host, folder }) => {
    await fc.assert(
      fc.asyncProperty(fc.array(fileStep(), { maxLength: 12 }), async (steps) => {
        const file = await newFile(host, `${folder}/model`);
        let model: Buffer = Buffer.alloc(0);
        for (const step of steps) model = await runStep(file, model, step);
        assert.equal(file.sizeBytes(), model.length);
        assert.deepEqual(await readAll(file, model.length + 100), Buffer.concat([model, Buffer.alloc(100)]));
        await file.close();
      }),
      { numRuns: 30 },
    );
  });

  check(
    'a durable write takes its bytes from all pieces, and makes the file longer',
    async ({ host, folder }) => {
      const file = await newFile(host, `${folder}/durable`);
      await writeBuffer(file, 0, Buffer.alloc(1000, 9));
      const bytes = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 251));
      const pieces = [
        bytes.subarray(0, 7),
        bytes.subarray(7, 7),
        bytes.subarray(7, 4000),
        bytes.subarray(4000),
      ];
      const memory = new IoVector();
      memory.setBuffers(pieces);
      await file.writeDurable(500, memory, 3, 4990);
      const expected = Buffer.concat([Buffer.alloc(500, 9), bytes.subarray(3, 4993)]);
      assert.deepEqual(await readAll(file, 5490), expected);
      assert.equal(file.sizeBytes(), 5490);
      const many = new IoVector();
      many.setBuffers(Array.from({ length: 3000 }, (_, i) => Buffer.alloc(3, i % 250)));
      await file.writeDurable(0, many, 1, 8999);
      const all = Buffer.concat(Array.from({ length: 3000 }, (_, i) => Buffer.alloc(3, i % 250)));
      assert.deepEqual(await readAll(file, 8999), all.subarray(1));
      await file.writeDurable(0, many, 0, 0);
      await file.close();
    },
  );

  check('holes are found, and data is never called a hole', async ({ host, folder }) => {
    const file = await newFile(host, `${folder}/sparse`);
    await file.truncate(8 * MiB);
    assert.deepEqual(await file.extentAt(0, MiB), { isHole: true, lengthBytes: MiB });
    await writeBuffer(file, 2 * MiB, Buffer.alloc(MiB, 7));
    await file.flush();
    assert.deepEqual(await file.extentAt(0, 8 * MiB), { isHole: true, lengthBytes: 2 * MiB });
    assert.deepEqual(await file.extentAt(2 * MiB, 8 * MiB), { isHole: false, lengthBytes: MiB });
    assert.deepEqual(await file.extentAt(2 * MiB + 4096, 4096), { isHole: false, lengthBytes: 4096 });
    assert.deepEqual(await file.extentAt(9 * MiB, 4096), { isHole: true, lengthBytes: 4096 });
    // A disk's file system may add a block for its own map of the file.
    assert.ok(file.allocatedBytes() >= MiB && file.allocatedBytes() < 2 * MiB);
    await file.punchHole(2 * MiB + 4096, 8192);
    assert.deepEqual(await file.extentAt(2 * MiB, MiB), { isHole: false, lengthBytes: 4096 });
    assert.deepEqual(await file.extentAt(2 * MiB + 4096, MiB), { isHole: true, lengthBytes: 8192 });
    assert.equal(file.sizeBytes(), 8 * MiB);
    await file.close();
  });

  check('open says in the words of QEMU what is wrong', async ({ host, folder }) => {
    const missing = `${folder}/missing`;
    await assert.rejects(host.files.open(missing, { write: false }), {
      kind: 'not-found',
      path: missing,
      errno: 'ENOENT',
      message: `Could not open '${missing}': No such file or directory`,
    });
    await assert.rejects(host.files.open(folder, { write: false }), {
      message: `Could not open '${folder}': Is a directory`,
    });
    await (await newFile(host, `${folder}/there`)).close();
    await assert.rejects(host.files.open(`${folder}/there`, { write: true, create: true, exclusive: true }), {
      kind: 'exists',
      message: `Could not create '${folder}/there': File exists`,
    });
    await assert.rejects(host.files.open(`${folder}/no/x`, { write: true, create: true }), {
      kind: 'not-found',
      message: `Could not create '${folder}/no/x': No such file or directory`,
    });
  });

  check('names: make, look at, sync, remove', async ({ host, folder }) => {
    const path = `${folder}/name`;
    assert.equal(await host.files.stat(path), undefined);
    const file = await newFile(host, path);
    await writeBuffer(file, 0, Buffer.alloc(1000, 1));
    await file.flush();
    await host.files.syncDirectory(folder);
    const {
      identity,
      modifiedMs,
      bornMs: _born,
      isPrivate: _,
      ...found
    } = (await host.files.stat(path)) ?? {};
    assert.deepEqual(found, { sizeBytes: 1000, isBlockDevice: false, isDirectory: false, isSpecial: 'no' });
    const again = await host.files.stat(`${folder}/../${folder.slice(folder.lastIndexOf('/') + 1)}/name`);
    assert.deepEqual([again?.identity, again?.modifiedMs], [identity, modifiedMs]);
    assert.deepEqual(await host.files.list(folder).then((names) => names.includes('name')), true);
    await host.files.mkdir(`${folder}/sub`);
    const sub = await host.files.stat(`${folder}/sub`);
    assert.equal(sub?.isDirectory, true);
    assert.notEqual(sub.identity, identity);
    assert.deepEqual(await host.files.list(`${folder}/sub`), []);
    await assert.rejects(host.files.list(`${folder}/none`), { kind: 'not-found' });
    await host.files.unlink(path);
    assert.equal(await host.files.stat(path), undefined);
    assert.ok(!(await host.files.list(folder)).includes('name'));
    // What is open stays readable.
    assert.deepEqual(await readAll(file, 4), Buffer.alloc(4, 1));
    await file.close();
  });

  check('private files and folders, a second name, another name', async ({ host, folder }) => {
    const { files } = host;
    const [inner, one, two] = [`${folder}/private`, `${folder}/private/one`, `${folder}/private/two`];
    await files.mkdir(inner, { isPrivate: true });
    const file = await files.open(one, { write: true, create: true, isPrivate: true });
    await writeBuffer(file, 0, Buffer.alloc(10, 1));
    await file.close();
    const [folderStat, stat] = [await files.stat(inner), await files.stat(one)];
    assert.deepEqual([folderStat?.isPrivate, stat?.isPrivate], [true, true]);
    await files.link(one, two);
    assert.equal((await files.stat(two))?.sizeBytes, 10);
    await assert.rejects(files.link(one, two), { kind: 'exists' });
    await assert.rejects(files.link(`${inner}/none`, `${inner}/three`), { kind: 'not-found' });
    const other = await newFile(host, one.replace('one', 'other'));
    await other.close();
    await files.rename(`${inner}/other`, two);
    assert.deepEqual((await files.list(inner)).sort(), ['one', 'two']);
    assert.equal((await files.stat(two))?.sizeBytes, 0);
    await assert.rejects(files.rename(`${inner}/none`, two), { kind: 'not-found' });
  });

  check('a file is opened again, whatever became of its name', async ({ host, folder }) => {
    const path = `${folder}/again`;
    const file = await newFile(host, path);
    await writeBuffer(file, 0, Buffer.alloc(1000, 1));
    await host.files.unlink(path);
    const reader = await host.files.open(path, { write: false, again: file });
    assert.deepEqual([reader.path, reader.writable], [file.path, false]);
    assert.deepEqual(await readAll(reader, 1000), Buffer.alloc(1000, 1));
    const other = await newFile(host, path);
    await writeBuffer(other, 0, Buffer.alloc(1000, 2));
    await file.close();
    const writer = await host.files.open(path, { write: true, again: reader });
    await writeBuffer(writer, 500, Buffer.alloc(1000, 3));
    const both = Buffer.concat([Buffer.alloc(500, 1), Buffer.alloc(1000, 3)]);
    assert.deepEqual(await readAll(reader, 1500), both);
    assert.deepEqual(await readAll(other, 1500), Buffer.concat([Buffer.alloc(1000, 2), Buffer.alloc(500)]));
    // The file is the same, the open file description is not.
    assert.equal(writer.lockByteShared(100), true);
    assert.deepEqual([reader.isByteLockedByOther(100), other.isByteLockedByOther(100)], [true, false]);
    await reader.close();
    assert.equal(writer.sizeBytes(), 1500);
    await assert.rejects(host.files.open(path, { write: false, again: reader }), { kind: 'closed' });
    await writer.close();
    await other.close();
  });

  check('locks belong to the open file description', async ({ host, folder }) => {
    const one = await newFile(host, `${folder}/locked`);
    const two = await host.files.open(`${folder}/locked`, { write: false });
    assert.equal(two.isByteLockedByOther(100), false);
    assert.equal(one.lockByteShared(100), true);
    assert.equal(one.isByteLockedByOther(100), false);
    assert.equal(two.isByteLockedByOther(100), true);
    assert.equal(two.isByteLockedByOther(101), false);
    assert.equal(two.lockByteShared(100), true);
    assert.equal(one.isByteLockedByOther(100), true);
    two.unlockByte(100);
    assert.equal(one.isByteLockedByOther(100), false);
    await one.close();
    assert.equal(two.isByteLockedByOther(100), false);
    await two.close();
  });

  check('copyFrom copies up to the end of the source', async ({ host, folder }) => {
    const source = await newFile(host, `${folder}/source`);
    const target = await newFile(host, `${folder}/target`);
    const data = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251));
    await writeBuffer(source, 0, data);
    for (let done = 0; done < data.length;) {
      let bytes = target.tryCopyFrom(source, done, 5000 + done, data.length);
      if (bytes < 0) bytes = await target.copyFrom(source, done, 5000 + done, data.length);
      assert.ok(bytes > 0);
      done += bytes;
    }
    assert.equal(await target.copyFrom(source, data.length, 0, 100), 0);
    assert.deepEqual(await readAll(target, 5000 + data.length), Buffer.concat([Buffer.alloc(5000), data]));
    await source.close();
    await target.close();
  });

  check('long copies at the same time keep apart, whatever their length', async ({ host, folder }) => {
    const source = await newFile(host, `${folder}/long-source`);
    const target = await newFile(host, `${folder}/long-target`);
    const lengthBytes = 2 * MiB + 4097;
    const parts = Array.from({ length: 5 }, (_, i) => Buffer.alloc(lengthBytes, `part ${i}.`));
    for (const [i, part] of parts.entries()) await writeBuffer(source, i * lengthBytes, part);
    // In the target they stand in the opposite order; the last one asks for more than the source has.
    const copied = await Promise.all(
      parts.map(async (_, i) => {
        const [from, to] = [i * lengthBytes, (parts.length - 1 - i) * lengthBytes];
        const asked = i === parts.length - 1 ? lengthBytes + MiB : lengthBytes;
        let done = 0;
        for (let bytes = -1; bytes !== 0 && done < lengthBytes; done += bytes)
          bytes = await target.copyFrom(source, from + done, to + done, asked - done);
        return done;
      }),
    );
    assert.deepEqual(new Set(copied), new Set([lengthBytes]));
    const whole = await readAll(target, parts.length * lengthBytes);
    assert.ok(whole.equals(Buffer.concat(parts.reverse())));
    await source.close();
    await target.close();
  });

  check('close() waits for what is under way, then everything is refused', async ({ host, folder }) => {
    const file = await newFile(host, `${folder}/closed`);
    await Promise.all([writeBuffer(file, 0, Buffer.alloc(MiB, 9)), file.close()]);
    assert.throws(() => file.sizeBytes(), { kind: 'closed' });
    assert.equal(tryReadBuffer(file, 0, Buffer.alloc(1)), false);
    await assert.rejects(readBuffer(file, 0, Buffer.alloc(1)), { kind: 'closed' });
    await assert.rejects(writeBuffer(file, 0, Buffer.alloc(1)), { kind: 'closed' });
    await assert.rejects(file.flush(), { kind: 'closed' });
    const again = await host.files.open(`${folder}/closed`, { write: false });
    assert.deepEqual(await readAll(again, MiB), Buffer.alloc(MiB, 9));
    await assert.rejects(writeBuffer(again, 0, Buffer.alloc(1)), BlockError);
    await again.close();
  });
}

async function newFile(host: Host, path: string): Promise<HostFile> {
  return host.files.open(path, { write: true, create: true, truncate: true });
}

async function readAll(file: HostFile, lengthBytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(lengthBytes, 0xee);
  if (!tryReadBuffer(file, 0, buffer)) await readBuffer(file, 0, buffer);
  return buffer;
}

interface FileStep {
  type: 'write' | 'punchHole' | 'zeroRange' | 'truncate' | 'allocate' | 'flush';
  position: number;
  lengthBytes: number;
  byte: number;
  tryFirst: boolean;
  /** How memory is cut, and where in it the data begins. */
  cuts: Cuts;
  start: number;
}

function fileStep(): fc.Arbitrary<FileStep> {
  return fc.record({
    type: fc.constantFrom('write', 'write', 'punchHole', 'zeroRange', 'truncate', 'allocate', 'flush'),
    position: fc.nat(20_000),
    lengthBytes: fc.integer({ min: 1, max: 12_000 }),
    byte: fc.integer({ min: 1, max: 255 }),
    tryFirst: fc.boolean(),
    cuts: fc.oneof(fc.constant([]), fc.array(fc.nat(5000), { minLength: 1, maxLength: 6 })),
    start: fc.nat(300),
  });
}

/** Does one step to the file; answers the content it must have afterwards. */
async function runStep(file: HostFile, model: Buffer, step: FileStep): Promise<Buffer> {
  const { position, lengthBytes } = step;
  const end = position + lengthBytes;
  const grown = Buffer.concat([model, Buffer.alloc(Math.max(end - model.length, 0))]);
  switch (step.type) {
    case 'write': {
      const data = Buffer.from(Array.from({ length: lengthBytes }, (_, i) => (step.byte + i) % 256));
      const memory = cutMemory(lengthBytes, step.cuts, step.start);
      memory.copyFrom(data, 0);
      if (!step.tryFirst || !file.tryWrite(position, memory, 0, lengthBytes))
        await file.write(position, memory, 0, lengthBytes);
      data.copy(grown, position);
      await assertReads(file, grown, step);
      return grown;
    }
    case 'punchHole':
      await file.punchHole(position, lengthBytes);
      return Buffer.from(model).fill(0, Math.min(position, model.length), Math.min(end, model.length));
    case 'zeroRange':
      return (await isSupported(file.zeroRange(position, lengthBytes)))
        ? grown.fill(0, position, end)
        : model;
    case 'allocate':
      if (step.tryFirst && file.tryAllocate(position, lengthBytes)) return grown;
      return (await isSupported(file.allocate(position, lengthBytes))) ? grown : model;
    case 'truncate': {
      if (!step.tryFirst || !file.tryTruncate(position)) await file.truncate(position);
      const longer = Math.max(position - model.length, 0);
      return Buffer.concat([model.subarray(0, position), Buffer.alloc(longer)]);
    }
    case 'flush':
      await file.flush();
      return model;
  }
}

/** A stretch around what was written, which may end beyond the file, into memory that is cut as the written was. */
async function assertReads(file: HostFile, content: Buffer, step: FileStep): Promise<void> {
  const position = Math.max(0, step.position - 700);
  const lengthBytes = step.lengthBytes + 1500;
  const expected = Buffer.alloc(lengthBytes);
  content.copy(expected, 0, position);
  const memory = cutMemory(100 + lengthBytes, step.cuts, step.start);
  memory.fillZero(0, 100 + lengthBytes);
  if (!step.tryFirst || !file.tryRead(position, memory, 100, lengthBytes))
    await file.read(position, memory, 100, lengthBytes);
  assert.ok(memory.isZero(0, 100), 'memory before the part that was read into');
  assert.ok(isTidy(memory), 'memory beside the pieces');
  assertSameBytes(memory.gather(100, lengthBytes), expected, 'memory in pieces');
}

async function isSupported(action: Promise<void>): Promise<boolean> {
  try {
    await action;
    return true;
  } catch (error) {
    assert.ok(error instanceof BlockError && error.kind === 'unsupported', String(error));
    return false;
  }
}
