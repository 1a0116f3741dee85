import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Preallocation, PREALLOCATION_MODES, resizeImage } from '../../../block/resize.js';
import { isDrawn } from '../../../../test/kit/amount.js';
import { crashStates, seededBelow } from '../../../../test/kit/crash-states.js';
import { createQcow2 } from '../../../../test/kit/new-qcow2.js';
import { applyWrite, childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import { checkQcow2 } from '../check/check.js';
import { qcow2Driver } from '../driver.js';

const SECTOR = 512;

/** What is left of an image when its program is killed, after each of its writes, and when the power goes. */
function* leftOf(
  file: RecordedDisk,
  below: (bound: number) => number,
): Generator<{ content: Buffer; at: string }> {
  let content = file.initial;
  let writes = 0;
  for (const event of file.log) {
    if (event.kind !== 'write') continue;
    yield { content, at: `killed after ${writes++} writes` };
    content = applyWrite(Buffer.from(content), event.offset, event.bytes);
  }
  yield { content, at: 'killed at the end' };
  for (const state of crashStates(file, below, 2))
    if (!state.isOfMany || isDrawn())
      yield { content: state.content, at: `power lost, survived ${state.survived}` };
}

interface Drawn {
  readonly shelf: DiskShelf;
  /** What the disk shows. */
  readonly content: Buffer;
  readonly text: string;
}

/** A disk `top` in use, on a base that is shorter, longer, or not there. */
async function drawnDisk(below: (bound: number) => number): Promise<Drawn> {
  const shelf = new DiskShelf([qcow2Driver]);
  const clusterBytes = [512, 1024, 4096, 16384][below(4)] ?? 512;
  const sizeBytes = (1 + below(300)) * SECTOR;
  const content = Buffer.alloc(sizeBytes);
  const baseBytes = below(2) * Math.max(1, sizeBytes / SECTOR + below(200) - 100) * SECTOR;
  if (baseBytes > 0) {
    await createQcow2(childOf(shelf.put('base')), { sizeBytes: baseBytes, options: { 'cluster-size': 512 } });
    const base = await shelf.open('base');
    await base.backend.write(0, Buffer.alloc(baseBytes, 0xbb));
    await base.close();
    content.fill(0xbb, 0, Math.min(sizeBytes, baseBytes));
  }
  const options = {
    ...{ 'cluster-size': clusterBytes, 'lazy-refcounts': below(4) === 0 },
    ...(clusterBytes === 16384 && { 'extended-l2': below(2) === 0 }),
  };
  const backing = baseBytes > 0 ? { backingFile: 'base', backingFormat: 'qcow2' } : {};
  await createQcow2(childOf(shelf.put('top')), { sizeBytes, options, ...backing });
  const disk = await shelf.open('top');
  for (let i = below(6); i > 0; i--) {
    const from = below(sizeBytes / SECTOR) * SECTOR;
    const length = Math.min(sizeBytes - from, (1 + below(60)) * SECTOR);
    const isZero = below(4) === 0;
    if (isZero) await disk.backend.writeZeroes(from, length, 0);
    else await disk.backend.write(from, Buffer.alloc(length, i));
    content.fill(isZero ? 0 : i, from, from + length);
  }
  await disk.close();
  return { shelf, content, text: `${JSON.stringify(options)}, ${sizeBytes} on ${baseBytes}` };
}

function resized(content: Buffer, sizeBytes: number): Buffer {
  const after = Buffer.alloc(sizeBytes);
  content.copy(after);
  return after;
}

async function resize(shelf: DiskShelf, name: string, sizeBytes: number, mode: Preallocation): Promise<void> {
  const disk = await shelf.open(name);
  await resizeImage(disk.backend, sizeBytes, mode);
  await disk.close();
}

async function expect(shelf: DiskShelf, name: string, content: Buffer, text: string): Promise<void> {
  const disk = await shelf.open(name, { readOnly: true });
  assert.equal(disk.node.lengthBytes, content.length, text);
  const shown = await disk.read(0, content.length);
  const wrong = shown.findIndex((byte, i) => byte !== content[i]);
  assert.equal(wrong, -1, `${text}: another byte at ${wrong}`);
  await disk.close();
}

for (let seed = 1; seed <= Number(process.env['RESIZE_SEEDS'] ?? 4); seed++)
  test(`a resize that is cut off anywhere has been done or not, and is done when asked again: seed ${seed}`, async () => {
    const below = seededBelow(seed * 7919);
    const drawn = await drawnDisk(below);
    const { shelf } = drawn;
    let { content } = drawn;
    for (let step = 0; step < 3; step++) {
      const sizeBytes = (1 + below(400)) * SECTOR;
      const mode = (sizeBytes > content.length && PREALLOCATION_MODES[below(6)]) || 'off';
      const before = content;
      content = resized(before, sizeBytes);
      const file = shelf.put('top', shelf.disk('top').contents());
      await resize(shelf, 'top', sizeBytes, mode);
      await expect(shelf, 'top', content, 'not cut off');
      for (const left of leftOf(file, below)) {
        const text = `${drawn.text}; step ${step}: ${before.length} to ${sizeBytes}, ${mode}; ${left.at}`;
        const found = await checkQcow2(childOf(new RecordedDisk(left.content)));
        assert.equal(found.corruptions, 0, `${text}: ${found.messages.join('; ')}`);
        shelf.put('left', left.content);
        const disk = await shelf.open('left', { readOnly: true });
        const isDone = disk.node.lengthBytes === sizeBytes;
        await disk.close();
        await expect(shelf, 'left', isDone ? content : before, text);
        if (!isDone) await resize(shelf, 'left', sizeBytes, mode);
        await expect(shelf, 'left', content, `${text}, and asked again`);
        const after = await checkQcow2(childOf(shelf.disk('left')));
        assert.equal(after.corruptions, 0, `${text}, and asked again: ${after.messages.join('; ')}`);
      }
    }
  });
