import assert from 'node:assert/strict';
import { test } from 'node:test';
import { afterLook, type Undoable } from '../../src/web/page/done.js';
import { recordedView } from '../view/recorded.js';

const running = recordedView('qemu-mirror');
const idle = recordedView('qemu-chain');
const undo = (): never => assert.fail('not taken back here');
const done: Undoable = { undo, job: { id: running.jobs[0]?.id ?? '', looks: 0 } };

const after = (...looks: ReadonlyArray<Parameters<typeof afterLook>[1]>): boolean =>
  looks.reduce(afterLook, done).undo !== undefined;

test('a job is taken back while it is there, and not once it is over, whoever has its name then', () => {
  assert.ok(after());
  assert.ok(after({ view: idle }), 'a look that began before it');
  assert.ok(after({ view: idle }, { view: running }));
  assert.ok(after({ view: running }, { view: idle, error: 'gone' }), 'what is old');
  assert.ok(!after({ view: running }, { view: idle }));
  assert.ok(!after({ view: idle }, { view: idle }), 'it was never seen');
  assert.ok(!after({ view: running }, { view: idle }, { view: running }), "another's");
});

test('what is no job stays to be taken back', () => {
  const one: Undoable = { undo };
  assert.equal(afterLook(afterLook(one, { view: idle }), { view: idle }), one);
});
