import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { EngineBed } from '../engine/engine-bed.js';
import { cases, COMMANDS, contentsOf, flush, SHAPES } from '../engine/graph-shapes.js';

const skip = spawnSync('qemu-img', ['--version']).error ? 'qemu-img is not installed' : false;

/** What QEMU reads from an image that it opens by name. */
function readByQemu(bed: EngineBed, filename: string, format: string): Buffer {
  const copy = bed.path('read-by-qemu');
  const done = spawnSync('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', filename, copy], {
    encoding: 'utf8',
  });
  assert.equal(done.status, 0, done.stderr);
  return readFileSync(copy);
}

for (const [shape, command] of cases()) {
  test(`QEMU reads through a header that ${command} wrote over ${shape}`, { skip }, async (t) => {
    const bed = new EngineBed(t);
    await SHAPES[shape]?.(bed);
    const made = await COMMANDS[command]?.(bed);
    assert.ok(made);
    const expected = await contentsOf(bed, made.node);
    await flush(bed);
    assert.ok(readByQemu(bed, made.file, 'qcow2').equals(expected), 'other data after reopening');
  });
}
