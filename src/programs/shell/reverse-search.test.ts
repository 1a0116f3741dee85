import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { ReverseSearch } from './reverse-search.js';

/** What reaches readline, and what is shown, when these keys are typed. */
function typed(...chunks: string[]): { keys: string; shown: string } {
  const terminal = new PassThrough();
  let shown = '';
  const search = new ReverseSearch(terminal, {
    lines: () => ['query-jobs', 'job-cancel id=b', 'job-cancel id=a'],
    show: (text) => void (shown += text),
    restore: () => void (shown += '<line>'),
  });
  let keys = '';
  search.on('data', (chunk: Buffer) => void (keys += chunk.toString()));
  for (const chunk of chunks) terminal.emit('data', Buffer.from(chunk));
  search.read();
  search.close();
  return { keys, shown };
}

test('keys go on as they are typed, and a line that is found as if it had been', () => {
  assert.equal(typed('abc\x1b[A').keys, 'abc\x1b[A');
  assert.equal(typed('x\x12canc\r').keys, 'x\x15\x0bjob-cancel id=b\r');
  assert.equal(typed('\x12canc\x12\r').keys, '\x15\x0bjob-cancel id=a\r');
  assert.equal(typed('\x12ca', 'nc=\x7f\x1b[D').keys, '\x15\x0bjob-cancel id=b\x1b[D');
  assert.equal(typed('\x12quer\tz').keys, '\x15\x0bquery-jobs\tz');
});

test('a search that is given up, or finds nothing, leaves the line', () => {
  assert.equal(typed('ab\x12canc\x07c').keys, 'abc');
  assert.equal(typed('ab\x12zzz\rc').keys, 'ab\rc');
  const { shown } = typed('\x12canz');
  assert.match(shown, /\(reverse-i-search\)'can': job-cancel id=b/);
  assert.match(shown, /\(failed reverse-i-search\)'canz': job-cancel id=b$/);
  assert.match(typed('\x12canc\x03').shown, /<line>$/);
});
