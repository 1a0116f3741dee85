import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WebBed } from './web-bed.js';

async function fitting(web: WebBed, line: string): Promise<string[]> {
  const { status, text } = await web.ask('/api/complete', { server: 'disk', line });
  assert.equal(status, 200, text);
  return (JSON.parse(text) as { words: string[] }).words;
}

test('a line is completed: commands, arguments, values, and what is open', async (t) => {
  const web = await WebBed.start(t, { hasConsole: true });
  await web.login();
  const known = web.bed.engine.registry.names().filter((name) => name.startsWith('block-job-c'));
  assert.deepEqual(await fitting(web, 'block-job-c'), known.sort());
  assert.ok(known.length > 1);
  assert.ok((await fitting(web, 'block-stream ')).includes('device='));
  assert.ok((await fitting(web, 'block-stream device=')).includes('B'));
  assert.deepEqual(await fitting(web, 'blockdev-mirror sync=f'), ['full']);
  // What the page does not send is not offered.
  assert.deepEqual(await fitting(web, 'blockdev-add'), []);
  const limited = await WebBed.start(t, { hasConsole: true, isReadOnly: true });
  await limited.login();
  assert.deepEqual(await fitting(limited, 'block-stream'), []);
  assert.deepEqual(await fitting(limited, 'query-jobs'), ['query-jobs']);
});

test('a line is read as the shell reads it, and checked as a command is', async (t) => {
  const web = await WebBed.start(t, { hasConsole: true });
  await web.login();
  const send = async (line: string): Promise<[number | undefined, string]> => {
    const { status, text } = await web.ask('/api/command', { server: 'disk', line });
    return [status, text];
  };
  assert.deepEqual(await send('query-jobs'), [200, '{"return":[]}']);
  const ready = web.bed.event('BLOCK_JOB_COMPLETED', 's');
  assert.deepEqual(await send('block-stream job-id=s device=C base-node=A speed=0'), [200, '{"return":{}}']);
  await ready;
  assert.deepEqual(await web.bed.layers(), ['C', 'A']);
  assert.equal((await send('{"execute": "query-jobs"}'))[0], 200);
  for (const [line, status] of [
    ['quit', 403],
    ['{"execute": "blockdev-add", "arguments": {}}', 403],
    ['block-stream device=C backing-file=/etc/shadow', 403],
    ['block-stream device', 400],
    ['', 403],
  ] as const)
    assert.equal((await send(line))[0], status, line);
});

test('without a console nothing is completed', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  assert.equal((await web.ask('/api/complete', { server: 'disk', line: 'q' })).status, 403);
});
