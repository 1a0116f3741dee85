import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { History, HISTORY_LINES } from './history.js';

test('lines are kept for the next shell, but for those with a space before them', (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-history-'));
  context.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'history');
  const first = new History(path);
  assert.deepEqual(first.lines, []);
  for (const line of ['query-jobs', ' object-add qom-type=secret id=s data=x', '', 'quit']) first.add(line);
  assert.equal(readFileSync(path, 'utf8'), 'query-jobs\nquit\n');
  assert.equal((statSync(path).mode % 0o1000).toString(8), '600');
  assert.deepEqual(new History(path).lines, ['quit', 'query-jobs']);
});

test('the file does not grow without end', (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-history-'));
  context.after(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'history');
  const lines = Array.from({ length: 2 * HISTORY_LINES + 1 }, (_, i) => `line ${i}`);
  writeFileSync(path, `${lines.join('\n')}\n`);
  const { lines: kept } = new History(path);
  assert.equal(kept.length, HISTORY_LINES);
  assert.equal(kept[0], lines.at(-1));
  assert.equal(readFileSync(path, 'utf8'), `${lines.slice(-HISTORY_LINES).join('\n')}\n`);
});

test('without a file, or where it cannot be written, nothing is kept', () => {
  for (const path of [undefined, '/nonexistent/history']) {
    const history = new History(path);
    history.add('query-jobs');
    assert.deepEqual(history.lines, []);
  }
});
