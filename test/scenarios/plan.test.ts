import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';

const ROWS = 164;

/** Of a row's last cell: the tests that it names, each a file and words of a title. */
function* references(cell: string): Generator<readonly [path: string, words: string]> {
  for (const part of cell.split('; ')) {
    const [, name = '', words = ''] = /^`([^`]+)`(?:: (.*))?$/.exec(part) ?? [];
    if (name === '') assert.match(part, /^not here: /, part);
    else yield [name.startsWith('jobs:') ? `src/jobs/${name.slice('jobs:'.length)}` : `test/${name}`, words];
  }
}

test('each situation of the public plan is a test, or says why not', () => {
  const lines = readFileSync('test/scenarios/README.md', 'utf8').split('\n');
  const rows = lines.filter((line) => /^\| \w/.test(line));
  const names = new Set<string>();
  for (const row of rows) {
    const [, name = '', situation = '', here = ''] = row
      .split(' | ')
      .join('|')
      .split('|')
      .map((cell) => cell.trim());
    assert.ok(situation !== '' && here !== '', row);
    names.add(name);
    for (const [path, words] of references(here)) {
      assert.ok(existsSync(path), `${name}: ${path}`);
      assert.ok(readFileSync(path, 'utf8').includes(words), `${name}: ${path} has no "${words}"`);
    }
  }
  assert.equal(names.size, ROWS);
});
