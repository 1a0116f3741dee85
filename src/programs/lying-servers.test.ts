import assert from 'node:assert/strict';
import { test } from 'node:test';
import { scratch } from '../../test/kit/program.js';
import { fakeMonitor } from '../../test/peers/fake-monitor.js';
import { createRealHost } from '../host/real.js';
import { connectMonitor } from '../view/connect.js';
import { moveMain } from './move/main.js';
import { ServerSchema } from './shell/server-schema.js';

/** What `livedisk move` says of a server that answers so. */
async function move(path: string, ...words: string[]): Promise<string> {
  let text = '';
  const output = { write: (more: string) => void (text += more), columns: 80 };
  await moveMain([...words, path, 'tcp:127.0.0.1:1'], { host: createRealHost(), output }, () => undefined);
  return text;
}

test('an answer that is none is told as that, and nothing of it is believed', async (t) => {
  for (const [i, answers] of [
    { 'x-move': null },
    { 'x-move': { disks: 7 } },
    { 'x-move': { disks: [{}], bitmaps: [], 'round-trip-us': 1, 'forecast-stop-ms': 1 } },
  ].entries()) {
    const path = `${scratch(t)}/plan-${i}.sock`;
    await fakeMonitor(t, path, answers);
    await assert.rejects(move(path, '--dry-run'), /the server's answer to x-move is none: /);
  }
  for (const [i, answer] of [
    null,
    'x',
    { owner: 7 },
    { owner: 'here', 'x-progress': { stage: 'x' } },
  ].entries()) {
    const path = `${scratch(t)}/query-${i}.sock`;
    await fakeMonitor(t, path, { 'x-move': {}, 'x-query-move': answer });
    await assert.rejects(move(path), /the server's answer to x-query-move is none: /);
  }
});

test('a shell takes nothing of what is no list of commands', async (t) => {
  for (const [i, answer] of [null, 7, [null, 7, {}, { name: 5 }, { name: 'stop' }]].entries()) {
    const path = `${scratch(t)}/shell-${i}.sock`;
    await fakeMonitor(t, path, { 'query-commands': answer, 'query-qmp-schema': answer });
    const client = await connectMonitor(createRealHost(), { type: 'unix', path }, path);
    const { commandNames } = await ServerSchema.fetch(client);
    assert.deepEqual(commandNames, Array.isArray(answer) ? ['stop'] : []);
    client.close();
  }
});
