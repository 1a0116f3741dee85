import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { commitImage } from '../../src/library/whole-images.js';
import { imgMain } from '../../src/programs/img/main.js';
import { parseRunOptions } from '../../src/programs/run/options.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** An image on `backing` that the engine does not have open. */
async function clone(bed: EngineBed, file: string, backing: string, format = 'qcow2'): Promise<string> {
  const filename = bed.path(file);
  await createImage(bed.engine.opener, filename, format, {
    ...{ sizeBytes: DISK_BYTES, backingFile: backing, backingFormat: 'qcow2' },
  });
  return filename;
}

const protectedCommit = { 'job-id': 'c', device: 'C', 'x-protect-shared-bases': true };

test('a commit that other images would suffer from is refused with their names', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  mkdirSync(bed.path('elsewhere'));
  symlinkSync(bed.path('A.qcow2'), bed.path('link.qcow2'));
  const near = await clone(bed, 'near.qcow2', 'link.qcow2');
  const far = await clone(bed, 'elsewhere/far.qed', bed.path('A.qcow2'), 'qed');
  const middle = await clone(bed, 'middle.qcow2', bed.path('B.qcow2'));
  writeFileSync(bed.path('noise.txt'), 'no image');
  const into = (base: string, more = {}): Promise<string> =>
    bed.refusal('block-commit', { ...protectedCommit, 'base-node': base, ...more });
  const prefix = 'Shared bases are protected: a commit changes what other images show: ';
  const [a, b] = [bed.path('A.qcow2'), bed.path('B.qcow2')];
  assert.equal(await into('A'), `${prefix}'${middle}' (on '${b}'), '${near}' (on '${a}')`);
  assert.equal(await into('B'), `${prefix}'${middle}' (on '${b}')`);
  // Below what is committed into, nothing changes; an overlay of what goes and is shown on loses nothing.
  assert.equal(await into('A', { 'top-node': 'B' }), `${prefix}'${near}' (on '${a}')`);
  const folders = { 'x-shared-bases-folders': [bed.path('elsewhere')] };
  const told = await into('A', { 'top-node': 'B', ...folders });
  assert.equal(told, `${prefix}'${near}' (on '${a}'), '${far}' (on '${a}')`);
  const missing = await into('A', { 'x-shared-bases-folders': [bed.path('none')] });
  assert.match(missing, /none': No such file or directory/);
  assert.deepEqual(await bed.execute('query-jobs'), []);
});

test("the chain itself and strangers are in nobody's way", async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  await bed.image('stranger');
  await bed.execute('block-commit', { ...protectedCommit, 'top-node': 'B' });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  assert.deepEqual(await bed.layers(), ['C', 'A']);
});

test('an engine that protects refuses without being asked, unless told otherwise, and one that does not warns', async (t) => {
  for (const refuses of [true, false]) {
    const warnings: string[] = [];
    const told = deferred();
    const warn = (text: string): void => {
      warnings.push(text);
      told.resolve();
    };
    const bed = new EngineBed(t, { baseProtection: { refuses }, warn });
    await bed.chain('A', 'B', 'C');
    const near = await clone(bed, 'near.qcow2', bed.path('A.qcow2'));
    const commit = { 'job-id': 'c', device: 'C', 'top-node': 'B' };
    const words = `a commit changes what other images show: '${near}' (on '${bed.path('A.qcow2')}')`;
    if (refuses)
      assert.equal(await bed.refusal('block-commit', commit), `Shared bases are protected: ${words}`);
    await bed.execute('block-commit', { ...commit, 'x-protect-shared-bases': false });
    await told.promise;
    assert.deepEqual(warnings, [`warning: block-commit: ${words}`]);
    await bed.event('BLOCK_JOB_COMPLETED', 'c');
  }
});

test('what is open in the engine counts wherever it lies', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  mkdirSync(bed.path('elsewhere'));
  const far = await clone(bed, 'elsewhere/far.qcow2', bed.path('A.qcow2'));
  const file = { driver: 'file', filename: far };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'far', file, backing: 'A' });
  const told = await bed.refusal('block-commit', { ...protectedCommit, 'top-node': 'B', 'base-node': 'A' });
  assert.ok(told.endsWith(`: '${far}' (on '${bed.path('A.qcow2')}')`), told);
});

test('what stands on the layer that goes shares nothing: it shows what it did', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A', 'B', 'C');
  const other = await clone(bed, 'other.qcow2', bed.path('B.qcow2'));
  const file = { driver: 'file', filename: other };
  await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': 'other', file, backing: 'B' });
  await bed.execute('block-commit', { ...protectedCommit, 'top-node': 'B', 'base-node': 'A' });
  await bed.event('BLOCK_JOB_COMPLETED', protectedCommit['job-id']);
  assert.equal(bed.engine.graph.node('other').backingNode()?.name, 'A');
});

test('img commit and the library protect, and the tool warns where it is not asked to', async (t) => {
  const bed = new EngineBed(t);
  const { opener } = bed.engine;
  await createImage(opener, bed.path('base.qcow2'), 'qcow2', { sizeBytes: DISK_BYTES });
  const top = await clone(bed, 'top.qcow2', 'base.qcow2');
  const near = await clone(bed, 'near.qcow2', 'base.qcow2');
  await assert.rejects(commitImage({ filename: top }, { protectsSharedBases: true }), {
    kind: 'busy',
    message: new RegExp(near),
  });
  const img = async (...words: string[]): Promise<[number, string]> => {
    let text = '';
    const out = { print: () => undefined, error: (line: string) => void (text += line) };
    return [await imgMain(['commit', ...words, '-f', 'qcow2', top], out, createRealHost(), allDrivers), text];
  };
  const [status, refusal] = await img('--protect-shared-bases');
  assert.deepEqual([status, refusal.includes(`'${near}'`)], [1, true]);
  const [done, warning] = await img();
  assert.deepEqual([done, warning.startsWith('qemu-img: warning: a commit changes')], [0, true]);
});

test('programs take the protection as options', () => {
  for (const kind of ['machine', 'storage-daemon'] as const) {
    const words = ['--protect-shared-bases', '--shared-bases-folder', '/a', '--shared-bases-folder', '/b'];
    const options = parseRunOptions(words, kind);
    assert.deepEqual([options.protectsSharedBases, options.sharedBasesFolders], [true, ['/a', '/b']]);
  }
});
