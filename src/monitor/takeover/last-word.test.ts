import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { HostSocket } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { hasSpoken } from './last-word.js';

const { clock, net } = createRealHost();

/** What is said when, by whoever is told to stop. */
function speaker(speaksAt: 'stop' | 'never'): { said: () => boolean; heard: string[]; peer: FakePeer } {
  let hasSaid = false;
  let looks = 0;
  const heard: string[] = [];
  const peer = {
    ...{ pid: 1, isSameUser: true },
    // On another processor it goes on for a moment.
    get isStopped() {
      if (++looks < 5) return false;
      if (speaksAt === 'stop') hasSaid = true;
      return true;
    },
    stop: () => void heard.push('stop'),
    goOn: () => void heard.push('goOn'),
    kill: () => void heard.push('kill'),
    terminate: () => void heard.push('terminate'),
  };
  return { said: () => hasSaid, heard, peer };
}
type FakePeer = NonNullable<ReturnType<NonNullable<HostSocket['peer']>>>;

function expecting(said: () => boolean): () => Promise<void> {
  return () => (said() ? Promise.resolve() : Promise.reject(new BlockError('timeout', 'nothing came')));
}

test('who has spoken before it stopped lives on', async () => {
  const { said, heard, peer } = speaker('stop');
  assert.equal(await hasSpoken(peer, clock, expecting(said)), true);
  assert.deepEqual(heard, ['stop', 'goOn']);
});

test('who has not spoken when it is stopped never does', async () => {
  const { said, heard, peer } = speaker('never');
  assert.equal(await hasSpoken(peer, clock, expecting(said)), false);
  assert.deepEqual(heard, ['stop', 'kill']);
});

async function connected(t: TestContext): Promise<{ peer: FakePeer; ended: Promise<unknown> }> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-last-word-'));
  const path = join(folder, 'socket');
  const came = deferred<HostSocket>();
  const listener = await net.listen({ type: 'unix', path }, (socket) => came.resolve(socket));
  const connects = `require('node:net').connect(${JSON.stringify(path)}).resume()`;
  const child = spawn(process.execPath, ['-e', connects], { stdio: 'ignore' });
  const ended = once(child, 'exit');
  const socket = await came.promise;
  t.after(() => {
    child.kill('SIGKILL');
    socket.destroy();
    listener.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const peer = socket.peer?.();
  assert.equal(peer?.pid, child.pid);
  assert.ok(peer);
  return { peer, ended };
}

test('a process is stopped, goes on, and ends', async (t) => {
  const { peer, ended } = await connected(t);
  const until = async (isStopped: boolean): Promise<void> => {
    while (peer.isStopped !== isStopped) await clock.sleep(1);
  };
  assert.equal(peer.isStopped, false);
  peer.stop();
  await until(true);
  peer.goOn();
  await until(false);
  peer.kill();
  assert.deepEqual(await ended, [null, 'SIGKILL']);
  assert.equal(peer.isStopped, true);
  const startMs = clock.nowMs();
  assert.equal(
    await hasSpoken(
      peer,
      clock,
      expecting(() => false),
    ),
    false,
  );
  assert.ok(clock.nowMs() - startMs < 1000, 'one that has ended is not waited for');
});
