import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { PROGRAM, scratch, skipWithout } from './daemon.js';
import { makeImages, Side } from './permission-side.js';
import { FIRST_USERS, type User } from './permission-users.js';

/** What a program of its own does to an image that a storage daemon has. FILE and FORMAT are replaced. */
const TOOLS: ReadonlyArray<readonly [string, ...string[]]> = [
  ['img', 'info', '-f', 'FORMAT', 'FILE'],
  ['img', 'map', '-f', 'FORMAT', 'FILE'],
  ['img', 'check', '-f', 'FORMAT', 'FILE'],
  ['img', 'check', '-U', '-f', 'FORMAT', 'FILE'],
  ['img', 'compare', '-f', 'FORMAT', '-F', 'raw', 'FILE', 'zeroes'],
  ['img', 'convert', '-f', 'FORMAT', '-O', 'raw', 'FILE', 'new'],
  ['img', 'convert', '-U', '-f', 'FORMAT', '-O', 'raw', 'FILE', 'new'],
  ['img', 'convert', '-f', 'raw', '-O', 'FORMAT', 'zeroes', 'FILE'],
  ['img', 'convert', '-n', '-f', 'raw', '-O', 'FORMAT', 'zeroes', 'FILE'],
  ['img', 'create', '-q', '-f', 'qcow2', '-F', 'FORMAT', '-b', 'FILE', 'new'],
  ['img', 'create', '-q', '-f', 'FORMAT', 'FILE', '8M'],
  ['io', '-r', '-f', 'FORMAT', '-c', 'read -q 0 64k', 'FILE'],
  ['io', '-r', '-U', '-f', 'FORMAT', '-c', 'read -q 0 64k', 'FILE'],
  ['io', '-f', 'FORMAT', '-c', 'read -q 0 64k', 'FILE'],
  ['io', '-f', 'FORMAT', '-c', 'write -q 0 64k', 'FILE'],
  ['io', '-f', 'FORMAT', '-c', 'truncate 9M', 'FILE'],
];

/** Who has the images, and those of them that are looked at. */
const HOLDERS: ReadonlyArray<readonly [string | undefined, string]> = [
  [undefined, 'act'],
  ['read T', 't'],
  ['write T', 't'],
  ['read C', 'abc'],
  ['write C', 'ac'],
  ['mirror CT', 'act'],
  ['mirror CE', 'ce'],
  ['commit C', 'abc'],
  ['stream C', 'bc'],
  ['backup CT', 'ct'],
];

test('a tool is let at an image that a daemon has, or kept from it, as the tools of QEMU are', async (context) => {
  if (skipWithout(context, 'qemu-img', 'qemu-io', 'qemu-storage-daemon')) return;
  const folder = scratch(context);
  const images = join(folder, 'images');
  mkdirSync(images);
  makeImages(images);
  const holder = new Side(context, 'theirs', images, folder);
  for (const [name, files] of HOLDERS) {
    const first: User | undefined = name === undefined ? undefined : FIRST_USERS.get(name);
    assert.equal(name === undefined, first === undefined);
    assert.equal(await holder.begin(first, 'at work'), undefined);
    copyFileSync(join(images, 't'), join(holder.folder, 'zeroes'));
    for (const file of files) {
      const format = file === 't' ? 'raw' : 'qcow2';
      for (const tool of TOOLS) {
        const words = tool.map((word) => (word === 'FILE' ? file : word === 'FORMAT' ? format : word));
        const answer = (program: string, args: string[]): string => {
          const { status, stderr } = spawnSync(program, args, { cwd: holder.folder, encoding: 'utf8' });
          return `${status} ${stderr}`;
        };
        const [kind = '', ...args] = words;
        const expected = answer(`qemu-${kind}`, args);
        const ours = answer(process.execPath, [PROGRAM, ...words]);
        assert.equal(ours, expected, `${words.join(' ')} while there is ${name ?? 'nobody'}`);
      }
    }
  }
});
