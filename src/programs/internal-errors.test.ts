import assert from 'node:assert/strict';
import { EventEmitter } from 'node:events';
import { test } from 'node:test';
import { assert as assertTrue, AssertionFailure, onAssertionFailure } from '../base/assert.js';
import { tellAssertionFailures, tellDeadEnd } from './internal-errors.js';

test('an assertion that fails is told once, also where a request swallows it', (t) => {
  t.after(() => onAssertionFailure(undefined));
  const told: string[] = [];
  tellAssertionFailures('livedisk', (text) => void told.push(text));
  const request = (text: string): void => {
    try {
      assertTrue(false, text);
    } catch (error) {
      assert.ok(error instanceof AssertionFailure);
    }
  };
  request('a table is pinned');
  request('a table is pinned');
  request('no cluster is used twice');
  assert.equal(told.length, 2);
  assert.match(told[0] ?? '', /^livedisk: internal error: AssertionFailure: a table is pinned\n {4}at /);
});

test('a program that is not done, and that nothing can wake, tells so and fails', () => {
  const told: string[] = [];
  const program = Object.assign(new EventEmitter(), { exitCode: undefined as number | undefined });
  const isDone = tellDeadEnd(
    'livedisk',
    program as unknown as NodeJS.Process,
    (text) => void told.push(text),
  );
  isDone();
  program.emit('beforeExit');
  assert.deepEqual([told, program.exitCode], [[], undefined]);
  tellDeadEnd('livedisk', program as unknown as NodeJS.Process, (text) => void told.push(text));
  program.emit('beforeExit');
  program.emit('beforeExit');
  assert.deepEqual(told, ['livedisk: internal error: what it waits for never comes\n']);
  assert.equal(program.exitCode, 1);
});
