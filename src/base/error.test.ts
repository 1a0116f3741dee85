import assert from 'node:assert/strict';
import { test } from 'node:test';
import { getSystemErrorMap } from 'node:util';
import { errnoText } from './error.js';

test('errnos that opening a path or a socket may meet have the text of strerror(3)', () => {
  assert.equal(errnoText('ELOOP'), 'Too many levels of symbolic links');
  assert.equal(errnoText('ENAMETOOLONG'), 'File name too long');
  assert.equal(errnoText('EMFILE'), 'Too many open files');
  assert.equal(errnoText('ENFILE'), 'Too many open files in system');
  // Not even in the table: the name, and no wrong text.
  assert.equal(errnoText('EWHATEVER'), 'EWHATEVER');
  const names = [...getSystemErrorMap().values()].map(([name]) => name);
  const paths = [
    'EACCES',
    'ELOOP',
    'EMFILE',
    'ENAMETOOLONG',
    'ENFILE',
    'ENODEV',
    'ENOENT',
    'ENOTDIR',
    'ETXTBSY',
  ];
  const sockets = ['EAFNOSUPPORT', 'EHOSTUNREACH', 'ENETUNREACH', 'ENOBUFS', 'ENOTCONN', 'ENOTSOCK'];
  for (const name of [...paths, ...sockets]) {
    assert.ok(names.includes(name), name);
    assert.notEqual(errnoText(name), name);
  }
});
