import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import { run, scratch, skipWithout } from './daemon.js';
import { DISK_BYTES, quit, startDaemon, successor, update } from './takeover-sides.js';

/** What a process had that has ended may be held for a moment longer: here the test holds it. */

/** Where the process that has a journal locks it. */
const LOCK_BYTE = 1;
const HELD_MS = 300;

/** A port that somebody has until `held` is closed. */
async function heldPort(): Promise<{ held: Server; port: number }> {
  const held = createServer();
  held.listen(0, '127.0.0.1');
  await once(held, 'listening');
  const { port } = held.address() as AddressInfo;
  return { held, port };
}

test('a job goes on once its journal is let go of', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'copy.qcow2', String(DISK_BYTES));
  const file = { driver: 'file', filename: 'copy.qcow2' };
  await daemon.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'copy', file });
  const journal = join(folder, 'journal');
  const job = { 'job-id': 'j', device: 'disk', target: 'copy', sync: 'full', 'x-persist': journal };
  await daemon.execute('blockdev-mirror', job);
  // Told by the process that ends; the next one tells it anew.
  await daemon.event('BLOCK_JOB_READY', { device: 'j' });
  const held = await createRealHost().files.open(journal, { write: true });
  assert.ok(held.lockByteShared(LOCK_BYTE));
  const next = await successor(t, folder);
  const ended = once(daemon.process, 'exit');
  let isAnswered = false;
  const asked = daemon.execute('x-takeover', { socket: 'next.sock' }).finally(() => (isAnswered = true));
  await ended;
  await new Promise((resolve) => setTimeout(resolve, HELD_MS));
  assert.ok(!isAnswered, 'guests are not served before jobs have their places');
  await held.close();
  await asked;
  const [told] = (await daemon.execute('query-block-jobs')) as Array<{ device: string }>;
  assert.equal(told?.device, 'j');
  await daemon.event('BLOCK_JOB_READY', { device: 'j' });
  await daemon.execute('block-job-cancel', { device: 'j' });
  await daemon.event('BLOCK_JOB_COMPLETED', { device: 'j' });
  await quit(daemon, next);
});

test('who has taken over hears signals from the first moment on', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const { held, port } = await heldPort();
  // It waits for the port.
  const args = ['-metrics', `127.0.0.1:${port}`];
  const serving = await update(t, folder, { daemon, serving: daemon.process, args });
  // That it is to give its place is remembered.
  serving.kill('SIGUSR2');
  await daemon.execute('query-status');
  const ended = once(serving, 'exit');
  serving.kill('SIGTERM');
  await daemon.event('SHUTDOWN');
  held.close();
  assert.deepEqual(await ended, [0, null]);
  run(folder, 'qemu-img', 'check', '-q', 'disk.qcow2');
});

test('numbers are served once their port is let go of', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const { held, port } = await heldPort();
  const args = ['-metrics', `127.0.0.1:${port}`];
  const serving = await update(t, folder, { daemon, serving: daemon.process, args });
  await new Promise((resolve) => setTimeout(resolve, HELD_MS));
  held.close();
  const numbers = async (): Promise<string> =>
    fetch(`http://127.0.0.1:${port}/metrics`).then(
      (answer) => answer.text(),
      () => '',
    );
  let text = await numbers();
  for (let looks = 0; looks < 500 && text === ''; looks++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    text = await numbers();
  }
  assert.match(text, /^livedisk_/m);
  await quit(daemon, serving);
});

test('who has just taken over gives its place to the next one once it is whole', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const { held, port } = await heldPort();
  // It waits for the port.
  const args = ['-metrics', `127.0.0.1:${port}`];
  const serving = await update(t, folder, { daemon, serving: daemon.process, args });
  const next = await successor(t, folder);
  const ended = once(serving, 'exit');
  const asked = daemon.execute('x-takeover', { socket: 'next.sock' });
  held.close();
  await asked;
  assert.deepEqual(await ended, [0, null]);
  await quit(daemon, next);
});
