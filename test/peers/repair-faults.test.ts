import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { errnoError } from '../../src/base/error.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import { drawn } from '../kit/amount.js';
import { childOf, DiskShelf, RecordedDisk } from '../kit/recorded-disk.js';
import { DAMAGES, guestSees, soundImage } from '../kit/repaired-qcow2.js';
import { checkQcow2 } from '../../src/drivers/qcow2/check/check.js';
import { scratch } from './daemon.js';
import { skip } from './tool-table.js';

/** What a repair leaves whose write or flush number `failing` fails; whether it did. */
async function broken(content: Buffer, failing: number): Promise<{ failed: boolean; content: Buffer }> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', content);
  const disk = await shelf.open('image', { forCheck: true });
  let events = 0;
  file.failure = () => (events++ === failing ? errnoError('EIO') : undefined);
  let failed = false;
  await disk.instance.check?.('all', () => undefined)?.catch(() => (failed = true));
  file.failure = () => undefined;
  await disk.close();
  return { failed, content: file.contents() };
}

/** The first so many damages qemu-img mends too; of the others it does not count the refcounts anew in so small an image. */
const MENDABLE = 6;

/** Repairs a file by qemu-img; answers what it said where it could not. */
function repairedByPeer(path: string, content: Buffer): string | undefined {
  writeFileSync(path, content);
  const done = spawnSync('qemu-img', ['check', '-f', 'qcow2', '-r', 'all', path], { encoding: 'utf8' });
  return done.status === 0 ? undefined : done.stdout + done.stderr;
}

test(
  'qemu-img repairs what a repair left that failed half-way, and the disk shows what it showed',
  { skip },
  async (context) => {
    const path = join(scratch(context), 'image.q');
    let judged = 0;
    for (const [what, damage] of drawn(DAMAGES.slice(0, MENDABLE))) {
      const image = soundImage();
      damage(image);
      // Some refcounts qemu-img cannot count anew in an image of this kind, whoever damaged them.
      if (repairedByPeer(path, image.bytes) !== undefined) continue;
      const whole = await guestSees((await broken(image.bytes, Infinity)).content);
      for (let failing = 0; ; failing++) {
        const { failed, content } = await broken(image.bytes, failing);
        if (!failed) break;
        const where = `${what}, event ${failing}`;
        assert.equal(repairedByPeer(path, content), undefined, where);
        const after = readFileSync(path);
        assert.deepEqual((await checkQcow2(childOf(new RecordedDisk(after)))).messages, [], where);
        assert.deepEqual(await guestSees(after), whole, where);
        judged++;
      }
    }
    assert.ok(judged >= 8, `${judged} images judged`);
  },
);
