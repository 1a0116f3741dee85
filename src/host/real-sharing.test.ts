import assert from 'node:assert/strict';
import { closeSync, readFileSync, readSync, writeSync } from 'node:fs';
import { test } from 'node:test';
import { dup, newEvent } from '../../test/kit/vhost-front-end.js';
import { defined } from '../base/assert.js';
import { createRealHost } from './real.js';

const O_NONBLOCK = 0o4000;
const sharing = defined(createRealHost().sharing, 'this machine shares memory');

function isNonBlocking(fd: number): boolean {
  const [, flags = ''] = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1')) ?? [];
  return (parseInt(flags, 8) & O_NONBLOCK) !== 0;
}

test('an event whose count is full keeps nobody waiting who signals it', () => {
  const fd = newEvent({ blocks: true });
  try {
    assert.equal(isNonBlocking(fd), false);
    const event = sharing.openEvent(dup(fd));
    // Else the signal would wait for ever, and this test with it.
    assert.equal(isNonBlocking(fd), true);
    const most = Buffer.alloc(8);
    most.writeBigUInt64LE(2n ** 64n - 2n);
    writeSync(fd, most);
    event.signal();
    event.close();
    const count = Buffer.alloc(8);
    readSync(fd, count);
    assert.deepEqual(count, most);
  } finally {
    closeSync(fd);
  }
});
