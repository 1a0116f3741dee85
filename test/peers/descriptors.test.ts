import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { PROGRAM, scratch, skipWithout } from './daemon.js';

const SCRIPT = join(import.meta.dirname, 'pass-descriptors.py');
const QEMU = 'qemu-system-x86_64';

/** What the script prints, without numbers of descriptors and times. */
function answers(cwd: string, ...program: string[]): string[] {
  const { status, stdout, stderr } = spawnSync('/usr/bin/python3', [SCRIPT, cwd, ...program], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  assert.equal(status, 0, `${stdout}${stderr}`);
  const plain = stdout.replace(/"fd": \d+/g, '"fd": N').replace(/; .* ops\/sec\)$/gm, '');
  return plain.split('\n');
}

test('descriptors that come with commands are taken as QEMU takes them', (t) => {
  if (skipWithout(t, QEMU)) return;
  const ours = answers(scratch(t), process.execPath, PROGRAM, 'run');
  const theirs = answers(scratch(t), QEMU, '-machine', 'none', '-nodefaults', '-display', 'none');
  assert.deepEqual(ours, theirs);
  assert.ok(theirs.length > 40);
});
