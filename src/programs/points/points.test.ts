import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { createImage, hashImage } from '../../library/whole-images.js';
import { ioMain } from '../io/main.js';
import { pointsMain } from './main.js';
import { EngineBed, MiB } from '../../../test/engine/engine-bed.js';

/** What `livedisk points` prints; its error is thrown. */
async function points(...words: string[]): Promise<string> {
  let text = '';
  const output = { write: (more: string) => void (text += more), columns: 100 };
  await pointsMain(words, { host: createRealHost(), output });
  return text;
}

async function io(image: string, ...commands: string[]): Promise<void> {
  let text = '';
  const out = { print: (line: string) => void (text += line), error: (line: string) => void (text += line) };
  const words = [...commands.flatMap((command) => ['-c', command]), '-f', 'qcow2', image];
  const raise = (): never => assert.fail();
  const status = await ioMain(
    words,
    { ...out, raise },
    createRealHost(),
    allDrivers,
    (async function* () {})(),
  );
  assert.deepEqual([status, /rror|failed/.test(text)], [0, false], text);
}

/** An image with points p1 to p3, a MiB written after each; answers the active one. */
async function atRest(bed: EngineBed): Promise<string> {
  let image = bed.path('a.qcow2');
  await createImage({ filename: image, format: 'qcow2', sizeBytes: 8 * MiB });
  await io(image, 'write -P 17 0 4M');
  for (let i = 1; i <= 3; i++) {
    const told = await points('create', '-f', 'qcow2', image, `p${i}`);
    image = /the active image is (.*)/.exec(told)?.[1] ?? '';
    await io(image, `write -P ${i} ${i}M 1M`);
  }
  return image;
}

test('an image at rest says what making a point would do, and keeps its bytes', async (t) => {
  const bed = new EngineBed(t);
  const image = await atRest(bed);
  const files = readdirSync(bed.folder);
  assert.match(await points('create', '--dry-run', image, 'p4'), /keeps what the disk holds at this moment/);
  assert.match(
    await points('create', '--dry-run', '--keep', '2', image, 'p4'),
    /keeps what the disk holds at this moment/,
  );
  assert.deepEqual(readdirSync(bed.folder), files);
});

test('an image at rest: points are made, shown, deleted and gone back to', async (t) => {
  const bed = new EngineBed(t);
  const image = await atRest(bed);
  const hash = await hashImage({ filename: image });
  const shown = await points(image);
  assert.match(shown, /^a: 3 points\n {4}p1 .* usable +a\.qcow2 /);
  assert.match(shown, /\(now\) +a\.after-p3\.qcow2/);
  assert.match(shown, /\[a\.qcow2\] +<-- \[a\.after-p1\.qcow2\]/);
  const planned = await points('delete', '--dry-run', image, 'p2');
  assert.match(planned, /^The disk cannot|Data of/);
  assert.match(planned, /copied at most: 1\.\d MiB, about 1 s/);
  await points('delete', image, 'p2');
  assert.doesNotMatch(await points(image), /p2 /);
  assert.equal(await hashImage({ filename: image }), hash);
  // What only p2 needed is gone.
  assert.equal(readdirSync(bed.folder).filter((name) => name.endsWith('.qcow2')).length, 3);
  const reverted = await points('revert', image, 'p1');
  const back = /the active image is (.*)/.exec(reverted)?.[1] ?? '';
  assert.match(reverted, /Later points are no more: 'p3'/);
  await io(back, 'read -P 17 0 4M', 'read -P 0 4M 4M');
  assert.match(await points(back), /^a: 1 point\n/);
  // Who opens the point itself is told where the disk is.
  assert.match(
    await points(join(bed.folder, 'a.qcow2')),
    /p1 .* usable +a\.qcow2 .*! this is not the disk as it is now: its active image is .*after-p1(-2)?\.qcow2/s,
  );
  await assert.rejects(points('create', join(bed.folder, 'a.qcow2'), 'p9'), /whose active image is/);
});

test('a point of several disks is changed on the image at rest that is named', async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['a', 'b']) {
    await bed.image(name);
    await bed.engine.addDevice(name, { id: `of-${name}` });
  }
  await bed.engine.execute('x-point-create', { name: 'p1' });
  const [a, b] = ['a', 'b'].map((name) => bed.path(`${name}.after-p1.qcow2`));
  await bed.engine.close();
  await io(a ?? '', 'write -P 7 0 1M');
  // By its name in the list, too.
  for (const disk of [[], ['--disk', 'a']])
    assert.match(await points('delete', '--dry-run', ...disk, a ?? '', 'p1'), /copied at most: \d/);
  await assert.rejects(points('delete', '--disk', 'c', a ?? '', 'p1'), /there is no disk 'c'/);
  assert.match(await points('revert', a ?? '', 'p1'), /^a: the active image is .*a\.after-p1-2\.qcow2/m);
  // An image without a name is shown by its file's.
  await points('revert', '--image', 'a.qcow2', bed.path('a.after-p1-2.qcow2'));
  await points('delete', b ?? '', 'p1');
  assert.match(await points(bed.path('a.after-a.qcow2.qcow2')), /^a: 1 point\n/);
  assert.match(await points(b ?? ''), /^b: 0 points\n/);
});

test('the words of the command line are checked', async () => {
  for (const [words, told] of [
    [[], 'a SOCKET or IMAGE is needed'],
    [['create', '/x'], "create needs the point's NAME"],
    [['/x', 'y'], "'y' is one word too many"],
    [['delete', '--keep', '3', '/x', 'y'], '--keep is of create'],
    [['create', '--quiesce', '/s', '/tmp', 'y'], 'has no guest to quiesce'],
  ] as const)
    await assert.rejects(points(...words), (error: Error) => error.message.includes(told));
});
