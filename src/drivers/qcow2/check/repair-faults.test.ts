import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errnoError } from '../../../base/error.js';
import type { RepairMode } from '../../../block/driver.js';
import { drawn } from '../../../../test/kit/amount.js';
import { DamagedQcow2 } from '../../../../test/kit/damaged-qcow2.js';
import { childOf, DiskShelf, RecordedDisk } from '../../../../test/kit/recorded-disk.js';
import {
  DAMAGES,
  guestSees,
  setExtra,
  soundImage,
  stateOf,
  withSnapshots,
  worse,
} from '../../../../test/kit/repaired-qcow2.js';
import { FieldOffset } from '../disk/header.js';
import { qcow2Driver } from '../driver.js';
import { checkQcow2 } from './check.js';

/** Which of the writes and flushes of a repair fail: one, or that one and all that follow until the image is closed. */
type Fault = 'once' | 'from then on';

interface Outcome {
  failed: boolean;
  content: Buffer;
  events: number;
}

/** A repair whose event number `failing` fails, and the end of its user. */
async function repairWithFault(
  content: Buffer,
  { failing, fault, mode = 'all' }: { failing: number; fault: Fault; mode?: RepairMode },
): Promise<Outcome> {
  const shelf = new DiskShelf([qcow2Driver]);
  const file = shelf.put('image', content);
  const disk = await shelf.open('image', { forCheck: true });
  let events = 0;
  file.failure = () => {
    const at = events++;
    return at === failing || (fault === 'from then on' && at > failing) ? errnoError('EIO') : undefined;
  };
  let failed = false;
  await disk.instance.check?.(mode, () => undefined)?.catch(() => (failed = true));
  const during = events;
  // The device is well again, or what broke it lasts until nobody uses the image.
  if (fault === 'once') file.failure = () => undefined;
  await disk.close().catch(() => undefined);
  return { failed, content: file.contents(), events: during };
}

const NEVER = Infinity;
const DIRTY = 1n;

function dirty(content: Buffer): Buffer {
  const image = Buffer.from(content);
  image.writeBigUInt64BE(image.readBigUInt64BE(FieldOffset.incompatible) | DIRTY, FieldOffset.incompatible);
  return image;
}

/** What is damaged, and the image, which its last user did not close. */
async function cases(): Promise<Array<[string, Buffer]>> {
  const found: Array<[string, Buffer]> = DAMAGES.map(([what, damage]) => {
    const image = soundImage();
    damage(image);
    return [what, dirty(image.bytes)];
  });
  const snapshots = await withSnapshots();
  found.push(['snapshots that are incomplete', dirty(setExtra(snapshots, 0, 24))]);
  const lost = new DamagedQcow2(setExtra(snapshots, 0, 24));
  lost.set(lost.refcountTable, 0n);
  found.push(['incomplete snapshots and no refcount block', dirty(lost.bytes)]);
  return found;
}

for (const fault of ['once', 'from then on'] as const)
  test(`a repair that fails (${fault}) leaves an image that is no worse, still dirty, and can be repaired`, async () => {
    for (const [what, image] of drawn(await cases())) {
      const before = await stateOf(image);
      const whole = await repairWithFault(image, { failing: NEVER, fault });
      const done = await stateOf(whole.content);
      assert.ok(whole.events >= 3 && !whole.failed, `${what}: ${whole.events} events`);
      for (let failing = 0; failing < whole.events; failing++) {
        const where = `${what}, event ${failing} of ${whole.events}`;
        const { content } = await repairWithFault(image, { failing, fault });
        const after = await stateOf(content);
        assert.equal(worse(before, after), undefined, where);
        const again = await repairWithFault(content, { failing: NEVER, fault });
        assert.equal(again.failed, false, where);
        const { messages } = await checkQcow2(childOf(new RecordedDisk(again.content)));
        assert.deepEqual(messages, done.problems, where);
        assert.deepEqual(await guestSees(again.content), done.seen, where);
      }
    }
  });

test('what is not repaired keeps the mark that it has to be: a refused repair, and one of leaks alone', async () => {
  const refused = soundImage();
  refused.setRefcount(refused.data(0), 0);
  const rest = soundImage();
  rest.setEntry(1, rest.entry(0));
  for (const image of [refused, rest]) {
    const { content } = await repairWithFault(dirty(image.bytes), {
      ...{ failing: NEVER, fault: 'once', mode: 'leaks' },
    });
    assert.ok((await stateOf(content)).problems.length > 0);
    assert.equal(content.readBigUInt64BE(FieldOffset.incompatible), DIRTY);
  }
});
