import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { test, type TestContext } from 'node:test';
import { scratch } from '../kit/program.js';
import { recorded } from '../view/recorded.js';
import { WebBed } from './web-bed.js';

/** A server of the chain A <-- ... <-- D that goes away, without an answer, when it is sent a command; another comes at once. */
async function goesAt(t: TestContext, path: string, command: string): Promise<string[][]> {
  const answers = recorded('qemu-chain');
  /** What each of them was sent, queries left out. */
  const sent: string[][] = [];
  const server = createServer((socket) => {
    const own: string[] = [];
    sent.push(own);
    let text = '';
    socket.on('error', () => undefined);
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
        const { execute, id } = JSON.parse(text.slice(0, end)) as { execute: string; id: number };
        text = text.slice(end + 1);
        if (!/query|qmp_/.test(execute)) own.push(execute);
        if (execute === command) return void socket.destroy();
        socket.write(`${JSON.stringify({ return: answers[execute] ?? {}, id })}\n`);
      }
    });
    const version = { qemu: { major: 10, minor: 0, micro: 0 }, package: '' };
    socket.write(`${JSON.stringify({ QMP: { version, capabilities: [] } })}\n`);
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => server.close());
  return sent;
}

for (const [command, expected] of [
  ['nbd-server-start', ['nbd-server-start']],
  ['block-export-add', ['nbd-server-start', 'block-export-add']],
] as const)
  test(`a server that goes at ${command} is told of, and nothing of its plan is sent to the next one`, async (t) => {
    const path = `${scratch(t)}/goes.sock`;
    const sent = await goesAt(t, path, command);
    const web = await WebBed.start(t, { servers: [{ name: 'server', address: { type: 'unix', path } }] });
    await web.login();
    const action = { kind: 'export', image: 'D', name: 'e', isWritable: false, file: web.bed.path('nbd') };
    const [status, error] = await web.error('/api/run', { server: 'server', action });
    assert.equal(status, 400);
    assert.match(error, /^server went away in the midst of it\. What it was asked last may have been done/);
    // Whoever is asked now is another.
    assert.equal((await web.ask('/api/plan', { server: 'server', action })).status, 200);
    assert.ok(sent.length > 1);
    assert.deepEqual(sent.flat(), expected);
  });
