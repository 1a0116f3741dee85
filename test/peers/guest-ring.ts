import assert from 'node:assert/strict';
import { closeSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './daemon.js';
import { RECORD_BYTES, recordNumber, RING_RECORDS } from './guest-machine.js';

/** The newest record of each slot of the guest's ring, as an image holds it. */
export function ringOf(folder: string, image: string, format = 'qcow2'): number[] {
  run(folder, 'qemu-img', 'convert', '-f', format, '-O', 'raw', image, 'content.raw');
  const file = openSync(join(folder, 'content.raw'), 'r');
  const block = Buffer.alloc(RECORD_BYTES);
  const ring = Array.from({ length: RING_RECORDS }, (_, slot) => {
    readSync(file, block, 0, RECORD_BYTES, slot * RECORD_BYTES);
    return recordNumber(block);
  });
  closeSync(file);
  return ring;
}

/** The ring holds every record up to the newest one in it, each in its slot, none missing. */
export function assertUnbroken(ring: number[], atLeast: number, what: string): void {
  const newest = Math.max(...ring);
  assert.ok(newest >= atLeast, `${what}: newest record ${newest}, but the guest had synced ${atLeast}`);
  ring.forEach((number, slot) => {
    const lastRound = newest - ((((newest - slot) % RING_RECORDS) + RING_RECORDS) % RING_RECORDS);
    assert.equal(number, lastRound < 0 ? -1 : lastRound, `${what}: slot ${slot}`);
  });
}
