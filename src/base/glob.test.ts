import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { matchesGlob } from './glob.js';

/** The same by all ways there are. */
function matchesSlowly(pattern: string, text: string): boolean {
  if (pattern === '') return text === '';
  const rest = pattern.slice(1);
  if (pattern.startsWith('*'))
    return matchesSlowly(rest, text) || (text !== '' && matchesSlowly(pattern, text.slice(1)));
  return text !== '' && (pattern[0] === '?' || pattern[0] === text[0]) && matchesSlowly(rest, text.slice(1));
}

test('a pattern is for the texts that some way of reading it gives', () => {
  const short = fc.string({ unit: fc.constantFrom('a', 'b', '*', '?', '.'), maxLength: 7 });
  fc.assert(
    fc.property(short, short, (pattern, text) =>
      assert.equal(matchesGlob(pattern, text), matchesSlowly(pattern, text), `${pattern} ${text}`),
    ),
    { numRuns: 2000 },
  );
  assert.equal(matchesGlob('a?c', 'a😀c'), true);
  assert.equal(matchesGlob('CN=*,O=?', 'CN=x\ny,O=z'), true);
});

test('what a pattern says does not make it slow', { timeout: 10_000 }, () => {
  const pattern = `${'*a?'.repeat(200)}b`;
  assert.equal(matchesGlob(pattern, 'a'.repeat(2000)), false);
  assert.equal(matchesGlob('*'.repeat(2000), 'a'.repeat(2000)), true);
});
