import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { OWN_ANSWERS } from '../peers/img-grammar.js';
import { LATER_ROWS } from '../peers/later-words.js';

test('whatever the image tool answers in its own way has a row among the differences', () => {
  const text = readFileSync('docs/DIFFERENCES.md', 'utf8').replace(/\s+/g, ' ');
  assert.deepEqual(
    [...OWN_ANSWERS.map(({ row }) => row), ...LATER_ROWS].filter((row) => !text.includes(row)),
    [],
  );
});
