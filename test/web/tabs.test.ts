import assert from 'node:assert/strict';
import { get, type IncomingMessage } from 'node:http';
import { test } from 'node:test';
import { WebBed } from './web-bed.js';

/** A stream of events, and what it has said until it ends. */
function stream(
  web: WebBed,
  headers: Record<string, string>,
): Promise<{ said: () => string; ended: Promise<void> }> {
  const { host, port } = web.url;
  const options = {
    host: '127.0.0.1',
    port,
    path: '/api/events',
    headers: { host, cookie: web.cookie, ...headers },
  };
  return new Promise((resolve, reject) => {
    get(options, (response: IncomingMessage) => {
      let text = '';
      const ended = new Promise<void>((end) => response.on('close', end).on('error', () => undefined));
      response.on('data', (chunk: Buffer) => {
        text += chunk.toString();
        resolve({ said: () => text, ended });
      });
    }).on('error', reject);
  });
}

test('of a browser with many tabs the oldest step aside, and scripts do not', async (t) => {
  const web = await WebBed.start(t);
  await web.login();
  const scripts = [await stream(web, {}), await stream(web, {})];
  const tabs = [];
  for (let i = 0; i < 6; i++) tabs.push(await stream(web, { 'sec-fetch-site': 'same-origin' }));
  scripts.push(await stream(web, {}));
  await Promise.all(tabs.slice(0, 2).map(({ ended }) => ended));
  assert.deepEqual(
    [...tabs, ...scripts].map(({ said }) => said().includes('event: aside\n')),
    [true, true, false, false, false, false, false, false, false],
  );
  // Who stays is told what comes.
  const before = tabs[5]?.said().length ?? 0;
  await web.bed.execute('block-stream', { device: 'C', 'job-id': 's' });
  while ((tabs[5]?.said().length ?? 0) === before) await new Promise((resolve) => setTimeout(resolve, 20));
});
