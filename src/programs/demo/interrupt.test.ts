import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { closed, livediskWords, PROJECT } from '../../../test/kit/program.js';

/** Numbers of the processes that a test started. */
function processesIn(mark: string): string[] {
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      return readFileSync(`/proc/${name}/environ`, 'latin1').includes(`LIVEDISK_TEST=${mark}\0`);
    } catch {
      return false;
    }
  });
}

for (const [args, stays] of [
  [['--once'], false],
  [['--once', '--keep'], true],
  [[], true],
] as const)
  test(`demo ${args.join(' ')}: a signal leaves no process behind`, { timeout: 300_000 }, async (t) => {
    const mark = `demo-${process.pid}-${args.length}`;
    const words = livediskWords('demo', ...args);
    // The daemon is started with the program's words alone.
    const loader = words[0] === '--import' ? { NODE_OPTIONS: `--import ${import.meta.resolve('tsx')}` } : {};
    const child = spawn(process.execPath, words, {
      cwd: PROJECT,
      env: { ...process.env, ...loader, LIVEDISK_TEST: mark },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      const before = text;
      text += chunk;
      const sign = 'A guest writes';
      if (text.includes(sign) && !before.includes(sign)) child.kill('SIGTERM');
    });
    assert.equal(await closed(child), 128 + 15);
    const folder = /^Everything is in (.*)$/m.exec(text)?.[1] ?? '';
    t.after(() => rmSync(folder, { recursive: true, force: true }));
    assert.equal(existsSync(folder), stays);
    assert.equal(text.includes(`The files are in ${folder}\n`), stays);
    // A killed process takes a moment to go; one that was not never does.
    while (processesIn(mark).length > 0) await sleep(20);
  });
