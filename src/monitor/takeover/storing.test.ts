import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deferred } from '../../base/async.js';
import { CancelSignal } from '../../base/cancel-signal.js';
import type { Given } from './live.js';
import { storeAll } from './storing.js';

test('of what is stored for nobody any more nothing is begun, and what was done is undone', async () => {
  const seen: string[] = [];
  const hangs = deferred();
  const log = (name: string, rests: Promise<void>): object => ({
    rest: () => (seen.push(`${name} rests`), rests),
    goOn: () => void seen.push(`${name} goes on`),
  });
  const node = (name: string, rests: Promise<void>): [string, object] => [
    name,
    { side: { log: log(name, rests) }, children: new Map() },
  ];
  const nodes = new Map([node('a', hangs.promise), node('b', Promise.resolve())]);
  const signal = new CancelSignal();
  const storing = storeAll({ graph: { nodes } } as unknown as Given, signal);
  signal.cancel();
  hangs.resolve();
  await assert.rejects(storing);
  assert.deepEqual(seen, ['a rests', 'a goes on']);
});
