import assert from 'node:assert/strict';
import { test } from 'node:test';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { toolAnswer } from '../../../test/kit/tool-answer.js';
import { ioMain } from './main.js';

test('help needs no image, everything else does', async () => {
  const io = (...args: string[]): ReturnType<typeof toolAnswer> =>
    toolAnswer((out) => ioMain(args, out, createRealHost(), allDrivers));
  const all = await io('-c', 'help');
  assert.equal(all.code, 0);
  assert.match(all.stdout, /^abort/);
  assert.match((await io('-c', 'help read')).stdout, /^read \[/);
  for (const args of [[], ['-c', 'length'], ['-c', 'help', '-c', 'length']]) {
    const { code, stderr } = await io(...args);
    assert.equal(code, 1);
    assert.equal(stderr, 'qemu-io: name an image on the command line\n');
  }
});
