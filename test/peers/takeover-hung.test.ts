import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratch, skipWithout } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { startDaemon } from './takeover-sides.js';

/** Greets whoever comes, rehearses nothing, and stops. */
const STOPS = `const say = (socket, type) => {
  const text = Buffer.from(JSON.stringify({ type }));
  const header = Buffer.alloc(8);
  header.writeUInt32LE(text.length, 0);
  socket.write(Buffer.concat([header, text]));
};
require('node:net').createServer((socket) => {
  let seen = '';
  socket.on('data', (chunk) => {
    seen += chunk.toString('latin1');
    if (seen.includes('"protocol"')) (say(socket, 'hello'), (seen = ''));
    if (!seen.includes('"memories"')) return;
    say(socket, 'rehearsed');
    process.kill(process.pid, 'SIGSTOP');
  });
}).listen(process.argv[2], () => console.log('listens'));`;

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
  writeFileSync(join(folder, 'stops.cjs'), STOPS);
  const next = spawn(process.execPath, ['stops.cjs', 'next.sock'], { cwd: folder });
  t.after(() => next.kill('SIGKILL'));
  const ended = once(next, 'exit');
  await once(next.stdout, 'data');
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
