import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NEVER_HELD } from '../../block/copy-turn.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { CopyBeforeWrite } from '../../drivers/copy-before-write/point-in-time.js';
import { HeldMoment } from './held-moment.js';
import type { JobJournal } from './job-journal.js';

const GRANULE = 4096;

test('what is lost while a guest waits for it to be durable is copied again before the guest changes it', async () => {
  const [due, changed] = [new DirtyBitmap(4 * GRANULE, GRANULE), new DirtyBitmap(4 * GRANULE, GRANULE)];
  const steps: string[] = [];
  const failed = (error: unknown): void => assert.fail(String(error));
  const inner = new CopyBeforeWrite({
    ...{ due, changed, failed },
    sides: { source: NEVER_HELD, target: NEVER_HELD },
    copy: async (_turn, { lengthBytes }) => {
      steps.push('copied');
      return lengthBytes;
    },
    breaks: 'snapshot',
  });
  let isSecured = false;
  // What it waits for is a flush, which succeeds at a server that began anew.
  const secure = async (): Promise<void> => {
    steps.push(`flushed, ${changed.isDirty(0) ? '' : 'not '}changed`);
    if (steps.length === 1) due.set(0, GRANULE);
    else isSecured = true;
  };
  const journal = { isSecured: () => isSecured, secure } as unknown as JobJournal;
  const gate = new HeldMoment({ journal, failed, breaks: 'snapshot' }).gate(inner);
  const change = { kind: 'discard', offset: 0, lengthBytes: GRANULE } as const;
  assert.equal(gate.isOpen(0, GRANULE), false);
  await gate.run(change, async () => {
    steps.push('made');
    assert.ok(changed.isDirty(0));
  });
  assert.deepEqual(steps, ['flushed, not changed', 'copied', 'flushed, not changed', 'made']);
});
