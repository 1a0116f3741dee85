import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { test } from 'node:test';
import { PROGRAM, run, skipWithout } from './daemon.js';

test('qemu-img finds every image of the demo clean', (t) => {
  if (skipWithout(t, 'qemu-img')) return;
  const demo = spawnSync(process.execPath, [PROGRAM, 'demo', '--once', '--keep'], { encoding: 'utf8' });
  const folder = /^Everything is in (.*)$/m.exec(demo.stdout)?.[1];
  assert.ok(folder !== undefined, demo.stderr);
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  assert.equal(demo.status, 0, demo.stdout + demo.stderr);
  // What the README shows is what there is to see.
  const recording = readFileSync('docs/pictures/demo.svg', 'utf8').replaceAll('&lt;', '<');
  const recorded = [...recording.matchAll(/<text class="t"[^>]*>([^<]*(?:<--[^<]*)*)<\/text>/g)];
  const titles = demo.stdout.split('\n').filter((line) => line.startsWith('== '));
  assert.deepEqual(
    recorded.map(([, title]) => title),
    titles,
  );
  assert.deepEqual(
    demo.stdout.split('\n').filter((line) => line.length > 80 && !line.startsWith('Everything is in')),
    [],
  );
  const images = readdirSync(folder).filter((name) => name.endsWith('.qcow2'));
  assert.equal(images.length, 8);
  for (const image of images) {
    assert.match(run(folder, 'qemu-img', 'check', image), /^No errors were found on the image\./);
    // What the guest ended on, and what it left: each opens with the chain that its header names.
    run(folder, 'qemu-img', 'info', '--backing-chain', image);
  }
});
