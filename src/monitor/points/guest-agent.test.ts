import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { createRealHost } from '../../host/real.js';
import { HeldClock } from '../../../test/kit/held-clock.js';
import { whileFrozen } from './guest-agent.js';

/** What it does with a command: answers, says nothing, says an error, hangs up. */
type Deed = 'answer' | 'silence' | 'error' | 'hang up';

/** A guest's agent: `deeds` say what becomes of freeze and thaw, the first one first; then all is answered. */
class Agent {
  readonly path: string;
  readonly asked: string[] = [];
  isFrozen = false;
  #connections = 0;
  readonly #deeds: Deed[];

  constructor(t: TestContext, ...deeds: Deed[]) {
    this.#deeds = deeds;
    const folder = mkdtempSync(join(tmpdir(), 'livedisk-agent-'));
    this.path = join(folder, 'agent.sock');
    const sockets = new Set<Socket>();
    const server = createServer((socket) => {
      sockets.add(socket);
      this.#connections++;
      // What an earlier client had asked.
      socket.write('{"return": {"stale": true}}\n');
      let text = '';
      socket.on('error', () => undefined);
      socket.on('data', (chunk) => {
        text += chunk.toString('latin1').replaceAll('\xff', '');
        for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
          this.#received(
            socket,
            JSON.parse(text.slice(0, end)) as { execute: string; arguments?: { id: number } },
          );
          text = text.slice(end + 1);
        }
      });
    });
    server.listen(this.path);
    t.after(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
      rmSync(folder, { recursive: true });
    });
  }

  get connections(): number {
    return this.#connections;
  }

  #received(
    socket: Socket,
    { execute, arguments: args }: { execute: string; arguments?: { id: number } },
  ): void {
    if (execute === 'guest-sync-delimited')
      return void socket.write(`\xff{"return": ${args?.id}}\n`, 'latin1');
    if (execute === 'guest-fsfreeze-status')
      return void socket.write(`{"return": "${this.isFrozen ? 'frozen' : 'thawed'}"}\n`);
    const name = execute.replace('guest-fsfreeze-', '');
    this.asked.push(name);
    const deed = this.#deeds.shift() ?? 'answer';
    if (deed === 'hang up') return void socket.destroy();
    if (deed === 'error')
      return void socket.write(
        '{"error": {"class": "GenericError", "desc": "no file system can be frozen"}}\n',
      );
    // An agent that is slow freezes none the less.
    this.isFrozen = name === 'freeze';
    if (deed === 'answer') socket.write('{"return": 2}\n');
  }
}

const host = createRealHost();

test("a guest's file systems are frozen while the work is done, and thawed", async (t) => {
  const agent = new Agent(t);
  const isQuiesced = await whileFrozen(host, { path: agent.path, timeoutMs: 10_000 }, async () =>
    assert.ok(agent.isFrozen),
  );
  assert.deepEqual([isQuiesced, agent.isFrozen, agent.asked], [true, false, ['freeze', 'thaw']]);
});

test('work that fails thaws, and so does a freeze that fails, without the work', async (t) => {
  const failing = new Agent(t);
  const work = (): Promise<void> => Promise.reject(new Error('no space'));
  await assert.rejects(whileFrozen(host, { path: failing.path, timeoutMs: 10_000 }, work), /no space/);
  assert.equal(failing.isFrozen, false);
  const refusing = new Agent(t, 'error');
  const never = (): Promise<void> => assert.fail('it is not frozen');
  await assert.rejects(
    whileFrozen(host, { path: refusing.path, timeoutMs: 10_000 }, never),
    /guest agent: guest-fsfreeze-freeze: no file system can be frozen/,
  );
  assert.deepEqual(refusing.asked, ['freeze', 'thaw']);
});

test('what another program has frozen is left frozen, and nothing is done', async (t) => {
  const agent = new Agent(t);
  agent.isFrozen = true;
  const never = (): Promise<void> => assert.fail('it is frozen for another');
  await assert.rejects(whileFrozen(host, { path: agent.path, timeoutMs: 10_000 }, never), {
    kind: 'busy',
    message: /frozen already.* guest-fsfreeze-thaw on /,
  });
  assert.deepEqual([agent.isFrozen, agent.asked], [true, []]);
});

test('an agent that does not answer in time is thawed over a new connection', async (t) => {
  const agent = new Agent(t, 'silence');
  const never = (): Promise<void> => assert.fail('it is not known to be frozen');
  const clock = new HeldClock(host.clock);
  const frozen = whileFrozen({ ...host, clock }, { path: agent.path, timeoutMs: 10_000 }, never);
  while (!agent.asked.includes('freeze')) await host.clock.macrotask();
  clock.pass(10_000);
  await assert.rejects(frozen, { kind: 'timeout' });
  assert.deepEqual([agent.isFrozen, agent.asked.at(-1)], [false, 'thaw']);
});

test('a connection that breaks while frozen does not leave the guest so', async (t) => {
  const agent = new Agent(t, 'answer', 'hang up');
  assert.equal(await whileFrozen(host, { path: agent.path, timeoutMs: 10_000 }, async () => undefined), true);
  assert.deepEqual([agent.isFrozen, agent.connections], [false, 2]);
});

test('work that takes longer than the bound is done, and told as not quiesced', async (t) => {
  const agent = new Agent(t);
  const clock = new HeldClock(host.clock);
  const quiesce = { path: agent.path, timeoutMs: 10_000 };
  const isQuiesced = await whileFrozen({ ...host, clock }, quiesce, async () => {
    clock.pass(9_999);
    assert.ok(agent.isFrozen);
    clock.pass(1);
    while (!agent.asked.includes('thaw')) await host.clock.macrotask();
  });
  assert.deepEqual([isQuiesced, agent.isFrozen], [false, false]);
});

test('an agent that never thaws is told, with what to do', async (t) => {
  const agent = new Agent(t, 'answer', 'error', 'error', 'error');
  await assert.rejects(
    whileFrozen(host, { path: agent.path, timeoutMs: 10_000 }, async () => undefined),
    {
      message:
        /^the moment was taken, but the guest's file systems may be frozen still: .*guest-fsfreeze-thaw on /,
    },
  );
});
