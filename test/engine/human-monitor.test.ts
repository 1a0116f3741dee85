import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineBed } from './engine-bed.js';

const refusal = { message: "Parameter 'cpu-index' expects a CPU number" };

test('a line of the human monitor for a processor is refused, as where there is none', async (t) => {
  const bed = new EngineBed(t, { kind: 'machine' });
  const ask = (more: object) =>
    bed.execute('human-monitor-command', { 'command-line': 'info status', ...more });
  assert.match((await ask({})) as string, /VM status/);
  await assert.rejects(ask({ 'cpu-index': 0 }), refusal);
});
