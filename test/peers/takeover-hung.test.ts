import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratch, skipWithout } from './daemon.js';
import { fakeSuccessor } from './fake-successor.js';
import { SmallNbd } from './small-nbd.js';
import { startDaemon } from './takeover-sides.js';

test('a new process that hangs and takes no message holds guests for the time that was given', async (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const folder = scratch(t);
  const daemon = await startDaemon(t, folder);
  const client = await SmallNbd.connect(join(folder, 'nbd.sock'), 'disk');
  // More than a socket takes.
  await daemon.execute('chardev-add', {
    id: 'ring',
    backend: { type: 'ringbuf', data: { size: 4 * 1048576 } },
  });
  await daemon.execute('ringbuf-write', { device: 'ring', data: 'x'.repeat(3 * 1048576) });
  const next = await fakeSuccessor(t, folder, 'stops');
  const ended = once(next.process, 'exit');
  const late = new Promise<never>((_, reject) =>
    setTimeout(reject, 20_000, new Error('guests are held on')).unref(),
  );
  const taking = daemon.execute('x-takeover', { socket: 'next.sock', timeout: 1000 });
  await assert.rejects(Promise.race([taking, late]), /did not take a message within 1000 ms/);
  assert.deepEqual(await ended, [null, 'SIGKILL']);
  await client.write(0, Buffer.alloc(512, 1));
  client.close();
  await daemon.execute('quit');
});
