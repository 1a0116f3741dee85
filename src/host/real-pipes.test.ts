import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { HostPipe } from './host.js';
import { createRealHost } from './real.js';

async function writeOn(pipe: HostPipe): Promise<never> {
  for (;;) await pipe.write(Buffer.alloc(4096));
}

test('who writes to a command that does not read is told so, whether or not it has ended by then', async () => {
  const { pipes } = createRealHost();
  assert.ok(pipes);
  const message = 'Unable to write to command: Broken pipe';
  const pipe = pipes.run(['/bin/true'], 'to');
  await assert.rejects(writeOn(pipe), { message, errno: 'EPIPE' });
  await assert.rejects(writeOn(pipe), { message, errno: 'EPIPE' });
});
