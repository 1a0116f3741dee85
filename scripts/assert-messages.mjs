// Imported before tests. An assert.ok() that fails without a message looks for its own source text to make one; in code that
// tsx has put on one line that takes minutes, and looks like a test that hangs.
import assert from 'node:assert/strict';

const told = assert.ok;

assert.ok = Object.assign(function ok(value, message) {
  told(value, message ?? 'The expression is not true');
}, told);
