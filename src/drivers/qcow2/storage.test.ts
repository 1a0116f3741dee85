import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ChildIo } from '../../block/driver.js';
import { ImageStorage } from './storage.js';

/** A child that says when it has been flushed. */
function child(name: string, log: string[]): ChildIo {
  const flush = async (): Promise<void> => {
    await Promise.resolve();
    log.push(name);
  };
  return { flush } as unknown as ChildIo;
}

test('guest data in a file of its own is durable before a flush ends, and one file is flushed once', async () => {
  const log: string[] = [];
  const meta = child('meta', log);
  await new ImageStorage(meta, child('data', log)).flush();
  assert.deepEqual(log, ['data', 'meta']);
  await new ImageStorage(meta, meta).flush();
  assert.deepEqual(log, ['data', 'meta', 'meta']);
});
