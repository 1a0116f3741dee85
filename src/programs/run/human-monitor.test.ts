import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { Engine } from '../../monitor/engine.js';
import { HumanMonitor } from './human-monitor.js';

/** What is printed for input that comes in these pieces, after the banner; whole when `prompts` have been printed. */
async function answers(pieces: readonly Buffer[], prompts: number): Promise<string> {
  const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'machine' });
  try {
    return await new Promise((resolve) => {
      let text = '';
      const monitor = new HumanMonitor(engine, (piece) => {
        text += piece;
        const parts = text.split('(qemu) ');
        // What is typed is shown anew with each key, before the line's end.
        const answers = parts.slice(1).map((part) => part.slice(part.indexOf('\n') + 1));
        if (parts.length === prompts + 2) resolve(answers.join(''));
      });
      for (const piece of pieces) monitor.push(piece);
    });
  } finally {
    await engine.close();
  }
}

test('a line is the same in whatever pieces it comes', async () => {
  const line = Buffer.from('größe\n');
  const bytes = Array.from(line, (_byte, at) => line.subarray(at, at + 1));
  assert.equal(await answers(bytes, 1), "unknown command: 'größe'\n");
});

test('a line without end is cut where QEMU cuts it', async () => {
  const pieces = [Buffer.alloc(4000, 'x'), Buffer.alloc(100_000, 'y'), Buffer.from('\ninfo status\n')];
  const cut = 'x'.repeat(4000) + 'y'.repeat(95);
  assert.equal(await answers(pieces, 2), `unknown command: '${cut}'\nVM status: running\n`);
});

test('after quit nothing is asked for', async () => {
  const engine = new Engine({ host: createRealHost(), drivers: allDrivers, kind: 'machine' });
  let text = '';
  const monitor = new HumanMonitor(engine, (piece) => void (text += piece));
  monitor.push(Buffer.from('info status\nquit\ninfo status\n'));
  await engine.quitting.promise;
  await engine.close();
  assert.equal(text.split('(qemu) ').length, 3);
  assert.ok(text.endsWith('quit\u001b[K\n'), JSON.stringify(text));
});
