import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockError } from '../../src/base/error.js';
import { createRealHost } from '../../src/host/real.js';
import type { FileFacts } from '../../src/view/model.js';
import { Extras } from '../../src/web/extras.js';
import { recordedView } from '../view/recorded.js';
import { WebBed } from './web-bed.js';

function failingOnce<T>(answer: T): () => Promise<T> {
  let asked = 0;
  return async () => {
    if (asked++ === 0) throw new BlockError('io', 'not this time');
    return answer;
  };
}

test('what a page needs of a server is asked for again when that has failed', async (t) => {
  const lines = { parse: () => ({ execute: 'query-jobs' }), complete: async () => [['word'], 'w'] as never };
  const points = { list: async () => ({ disks: [] }) } as never;
  const web = await WebBed.start(t, {
    hasConsole: true,
    linesOver: failingOnce(lines),
    pointsOver: failingOnce(points),
  });
  await web.login();
  // Somebody watches, so that the connection stays.
  await web.events((event) => event === 'state');
  for (const [what, body] of [
    ['complete', { line: 'w' }],
    ['points', { verb: 'list' }],
  ] as const) {
    assert.deepEqual(await web.error(`/api/${what}`, { server: 'disk', ...body }), [400, 'not this time']);
    assert.equal((await web.ask(`/api/${what}`, { server: 'disk', ...body })).status, 200, what);
  }
});

test('files are looked at by one look at a time, and what is told is of the last one', async () => {
  const { clock } = createRealHost();
  let nowMs = 0;
  const answers: Array<(facts: Map<string, FileFacts>) => void> = [];
  const extras = new Extras(
    { ...clock, nowMs: () => (nowMs += 60_000) },
    { lookAtFiles: () => new Promise((resolve) => answers.push(resolve)), readMap: async () => undefined },
  );
  const view = recordedView('qemu-chain');
  for (let i = 0; i < 5; i++) extras.addTo(view);
  assert.equal(answers.length, 1);
  answers[0]?.(new Map());
  await clock.macrotask();
  extras.addTo(view);
  assert.equal(answers.length, 2);
});
