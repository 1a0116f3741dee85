import assert from 'node:assert/strict';
import { CancelSignal } from '../../src/base/cancel-signal.js';
import { BlockError } from '../../src/base/error.js';
import type { RequestKind } from '../../src/block/request.js';
import { assertOneOfEach, type DiskRequest } from './disk-model.js';
import { assertSameBytes, type TestBed, type TestDisk } from './test-disk.js';

const KIND_OF: Readonly<Record<DiskRequest['kind'], RequestKind>> = {
  read: 'read',
  write: 'write',
  fua: 'write',
  zero: 'zeroes',
  unmap: 'zeroes',
  discard: 'discard',
  flush: 'flush',
};

/** Begins a request that the signal cancels; answers whether it was done. Any other error is thrown. */
export async function runUntilCancelled(
  disk: TestDisk,
  { kind, offset, lengthBytes, value }: DiskRequest,
  signal: CancelSignal,
): Promise<boolean> {
  const { backend } = disk;
  const request = backend.requests.take().ask(KIND_OF[kind], offset, lengthBytes);
  request.setBuffer(Buffer.alloc(lengthBytes, value));
  request.signal = signal;
  try {
    await backend.run(request);
    return true;
  } catch (error) {
    if (error instanceof BlockError && error.errno === 'ECANCELED') return false;
    throw error;
  } finally {
    backend.requests.give(request);
  }
}

/** What a drained section holds back is cancelled: nothing of it is done, and nothing stays behind. */
export async function checkCancelledWhileHeld(
  bed: TestBed,
  disk: TestDisk,
  requests: readonly DiskRequest[],
): Promise<void> {
  const before = await disk.readAll();
  const signal = new CancelSignal();
  const outcomes = await bed.graph.drained([disk.node], async () => {
    const running = requests.map((request) => runUntilCancelled(disk, request, signal));
    await new Promise((resolve) => setImmediate(resolve));
    signal.cancel();
    return Promise.all(running);
  });
  assert.ok(
    outcomes.every((done) => !done),
    'a request that was held back was done',
  );
  await disk.backend.untilUnused();
  assertSameBytes(await disk.readAll(), before, 'after requests that were cancelled');
}

/** Of requests to the same bytes some are cancelled while they wait for others: each is done, or was not begun. */
export async function checkCancelledInLine(
  disk: TestDisk,
  requests: readonly DiskRequest[],
  turns: number,
): Promise<void> {
  const before = await disk.readAll();
  const signal = new CancelSignal();
  const running = requests.map((request) => runUntilCancelled(disk, request, signal));
  for (let turn = 0; turn < turns; turn++) await Promise.resolve();
  signal.cancel();
  const done = await Promise.all(running);
  const begun = requests.filter((_, index) => done[index]);
  assertOneOfEach(await disk.readAll(), before, begun);
  for (const node of disk.node.chain()) assert.ok(node.io.ranges.isIdle, 'a range is held for ever');
}
