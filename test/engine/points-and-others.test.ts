import assert from 'node:assert/strict';
import { appendFileSync, readdirSync, utimesSync } from 'node:fs';
import { test } from 'node:test';
import { createRealHost } from '../../src/host/real.js';
import {
  PointVerb,
  readPointFile,
  writePointFile,
  type UnneededFile,
} from '../../src/monitor/points/point-file.js';
import { openTarget } from '../../src/programs/points/targets.js';
import { EngineBed, MiB } from './engine-bed.js';

/** Points while others work on the same disks: their jobs, other managers, and ends that came too early. */

async function diskWithPoints(bed: EngineBed, count: number): Promise<void> {
  await bed.chain('A');
  for (let i = 1; i <= count; i++) {
    await bed.execute('x-point-create', { name: `p${i}` });
    await bed.guest(`write -P ${i} ${i * MiB} 1M`);
  }
}

async function states(bed: EngineBed): Promise<string[]> {
  const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
  return (disks[0]?.points ?? []).map(({ name, state }) => `${name} ${state}`);
}

async function deleted(bed: EngineBed, name: string): Promise<void> {
  await bed.execute('x-point-delete', { name });
  while ((await bed.engine.execute('x-point-list', { nodes: [] })).queue.length > 0)
    await new Promise((resolve) => setImmediate(resolve));
  const ends = bed.events.filter(({ event }) => event === 'x-point-deleted');
  assert.deepEqual(ends.at(-1)?.data['error'], undefined);
}

const images = (bed: EngineBed): string[] =>
  readdirSync(bed.folder).filter((name) => name.endsWith('.qcow2'));

test('an image that was streamed up is not taken for one that went down into a changed one', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 3);
  const [top = '', , second = '', first = ''] = await bed.layers();
  // p3's image goes up; the one below it is written to by a job that has not ended.
  await bed.execute('block-stream', { 'job-id': 'up', device: top, 'base-node': second });
  await bed.event('BLOCK_JOB_COMPLETED', 'up');
  const speed = { 'job-id': 'slow', device: second, speed: 64 * 1024 };
  await bed.execute('block-stream', speed);
  while (
    ((await bed.execute('query-jobs')) as Array<{ 'current-progress': number }>)[0]?.['current-progress'] ===
    0
  )
    await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok((await bed.layers()).includes(first));
  await bed.execute('query-block');
  const [, , last] = await states(bed);
  assert.equal(last, 'p3 lost');
  await bed.execute('job-cancel', { id: 'slow' });
});

test('while the active image is committed, points are listed, and what cannot be says who works there', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const [top = '', below = ''] = await bed.layers();
  await bed.execute('block-commit', { 'job-id': 'c', device: top, 'base-node': below });
  await bed.event('BLOCK_JOB_READY', 'c');
  const { disks } = await bed.engine.execute('x-point-list', {});
  assert.deepEqual(
    disks.map(({ disk }) => disk),
    ['A'],
  );
  assert.match(await bed.refusal('x-point-create', { name: 'p3' }), /job c works on/);
  await bed.execute('stop');
  await bed.execute('system_reset');
  assert.match(await bed.refusal('x-point-revert', { name: 'p1' }), /job c works on/);
  await bed.execute('job-cancel', { id: 'c' });
});

test('a deletion that ended between the copying and the file: asked again, what nobody needs is removed', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 3);
  const host = createRealHost();
  const path = bed.path('A.points');
  const [, , second = ''] = await bed.layers();
  const marked = await readPointFile(host, path);
  const endOf = (image: string): UnneededFile[] =>
    marked.content.images
      .filter(({ file }) => file === image)
      .map(({ file, identity }) => ({ file, identity }));
  const content = {
    ...marked.content,
    points: marked.content.points.map((point) =>
      point.name === 'p2' ? { ...point, deleting: 'stream' as const, ends: endOf(point.image) } : point,
    ),
  };
  await writePointFile(host, { ...marked, content });
  const [, above = '', , base = ''] = await bed.layers();
  await bed.execute('block-stream', { 'job-id': 's', device: above, 'base-node': base });
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  assert.ok(!(await bed.layers()).includes(second));
  assert.ok(images(bed).includes('A.after-p1.qcow2'));
  await deleted(bed, 'p2');
  assert.ok(!images(bed).includes('A.after-p1.qcow2'));
  assert.deepEqual(await states(bed), ['p1 usable', 'p3 usable']);
});

test('keep deletes nothing of disks that were not asked for', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('B');
  await bed.engine.addDevice('B', { id: 'virtio1' });
  await bed.execute('x-point-create', { name: 'both' });
  const disks = [{ node: 'virtio0' }];
  const made = await bed.engine.execute('x-point-create', { name: 'one', disks, keep: 1 });
  assert.deepEqual(made.deletes, ['both']);
  while ((await bed.engine.execute('x-point-list', { nodes: [] })).queue.length > 0)
    await new Promise((resolve) => setImmediate(resolve));
  const { disks: all } = await bed.engine.execute('x-point-list', {});
  assert.deepEqual(
    all.map(({ disk, points }) => [disk, points.map(({ name, state }) => `${name} ${state}`)]).sort(),
    [
      ['A', ['one usable']],
      ['B', ['both usable']],
    ],
  );
  // A disk that is named and has no such point is not passed over.
  await bed.execute('stop');
  await bed.execute('system_reset');
  const named = { name: 'both', disks: [{ node: 'virtio0' }, { node: 'virtio1' }] };
  assert.match(await bed.refusal('x-point-revert', named), /disk 'A' has no point 'both'/);
});

test('what another manager has written is not written over, and who is at it is waited for', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 1);
  const host = createRealHost();
  const file = await readPointFile(host, bed.path('A.points'));
  await bed.execute('x-point-create', { name: 'p2' });
  await assert.rejects(writePointFile(host, file), /another program has changed .*A\.points' meanwhile/);
  const verb = await PointVerb.begin(host, file.path);
  assert.match(
    await bed.refusal('x-point-create', { name: 'p3' }),
    /another program is making or going back/,
  );
  await verb.end();
  await bed.execute('x-point-create', { name: 'p3' });
  assert.deepEqual(await states(bed), ['p1 usable', 'p2 usable', 'p3 usable']);
});

test('a base whose point was streamed away, and is open still, is not the disk', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const host = createRealHost();
  const path = bed.path('A.points');
  const marked = await readPointFile(host, path);
  const points = marked.content.points.map((point) =>
    point.name === 'p1' ? { ...point, deleting: 'stream' as const } : point,
  );
  await writePointFile(host, { ...marked, content: { ...marked.content, points } });
  const [top, above = ''] = await bed.layers();
  await bed.execute('block-stream', { 'job-id': 's', device: above });
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  const { disks } = await bed.engine.execute('x-point-list', {});
  assert.deepEqual(
    disks.map(({ node }) => node),
    [top],
  );
  const named = { name: 'p2', nodes: ['A'] };
  assert.match(
    await bed.refusal('x-point-delete', named),
    /'A' is not disk 'A' as it is now, whose active image/,
  );
  await deleted(bed, 'p1');
  assert.deepEqual(await states(bed), ['p2 usable']);
});

/** p1 to p4, and a commit of p3's image and p2's into that of p1, which has written something. */
async function whileCommitted(bed: EngineBed): Promise<string[]> {
  await diskWithPoints(bed, 4);
  const layers = await bed.layers();
  const [top = '', , third = '', , first = ''] = layers;
  const args = { 'job-id': 'c', device: top, 'top-node': third, 'base-node': first, speed: 64 * 1024 };
  await bed.execute('block-commit', args);
  const done = async (): Promise<number | undefined> =>
    ((await bed.execute('query-jobs')) as Array<{ 'current-progress': number }>)[0]?.['current-progress'];
  while ((await done()) === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  return layers;
}

test('while images are committed, points that they hold and stand on the base are lost, those above are not', async (t) => {
  const bed = new EngineBed(t);
  await whileCommitted(bed);
  assert.deepEqual(await states(bed), ['p1 lost', 'p2 lost', 'p3 usable', 'p4 usable']);
  await bed.execute('block-job-set-speed', { device: 'c', speed: 0 });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  // Of two images that have gone down it is not told which one the base shows.
  assert.deepEqual(await states(bed), ['p1 lost', 'p2 lost', 'p3 lost', 'p4 usable']);
});

test('a commit that was cancelled has changed what stands on its base', async (t) => {
  const bed = new EngineBed(t);
  const layers = await whileCommitted(bed);
  await bed.execute('job-cancel', { id: 'c' });
  await bed.event('BLOCK_JOB_CANCELLED', 'c');
  assert.deepEqual(await bed.layers(), layers);
  // Which point it was begun at nothing tells any more.
  assert.deepEqual(await states(bed), ['p1 lost', 'p2 lost', 'p3 lost', 'p4 lost']);
  const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
  assert.match(
    disks[0]?.points[1]?.why ?? '',
    /^'A\.qcow2', which it stands on, was written to by another program$/,
  );
  await bed.execute('x-point-create', { name: 'p5' });
  assert.deepEqual(await states(bed), ['p1 lost', 'p2 lost', 'p3 lost', 'p4 lost', 'p5 usable']);
});

test('what is written into an image changes all points that stand on it', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('base', 'B');
  for (const name of ['p1', 'p2']) await bed.execute('x-point-create', { name });
  appendFileSync(bed.path('base.qcow2'), 'x');
  assert.deepEqual(await states(bed), ['p1 lost', 'p2 lost']);
});

test('a point that a deletion of ours wrote into is the disk when the active image was committed into it', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const host = createRealHost();
  const path = bed.path('A.points');
  const marked = await readPointFile(host, path);
  const points = marked.content.points.map((point) =>
    point.name === 'p1' ? { ...point, deleting: 'stream' as const } : point,
  );
  await writePointFile(host, { ...marked, content: { ...marked.content, points } });
  const [top = '', held = ''] = await bed.layers();
  await bed.execute('block-stream', { 'job-id': 's', device: held });
  await bed.event('BLOCK_JOB_COMPLETED', 's');
  await bed.execute('block-commit', { 'job-id': 'c', device: top });
  await bed.event('BLOCK_JOB_READY', 'c');
  await bed.execute('block-job-complete', { device: 'c' });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  await bed.guest('write -P 9 2M 256k');
  const { disks } = await bed.engine.execute('x-point-list', { nodes: ['virtio0'] });
  assert.deepEqual(
    disks.map((disk) => [
      disk.node,
      disk['active-elsewhere'],
      disk.points.map(({ name, state }) => [name, state]),
    ]),
    [
      [
        held,
        undefined,
        [
          ['p1', 'deleting'],
          ['p2', 'lost'],
        ],
      ],
    ],
  );
});

for (const [below, when] of [
  [2, 'later'],
  [2, 'at the same time'],
  [3, 'later'],
] as const)
  test(`a point that another program streamed into from above layer ${below}, opened in place of the disk that was written to ${when}, is told as that`, async (t) => {
    const bed = new EngineBed(t);
    await diskWithPoints(bed, 3);
    const layers = await bed.layers();
    const [top = '', held = ''] = layers;
    const [active, image] = [top, held].map((name) => bed.engine.graph.node(name).filename);
    // From right above the next layer there is nothing to copy, and the header is written.
    await bed.execute('block-stream', { 'job-id': 's', device: held, 'base-node': layers[below] ?? '' });
    await bed.event('BLOCK_JOB_COMPLETED', 's');
    await bed.guest('write -P 9 5M 1M');
    // By a file system whose clock goes in steps.
    const [streamedAt, writtenAt] = when === 'later' ? [1, 2] : [1, 1];
    utimesSync(image ?? '', streamedAt, streamedAt);
    utimesSync(active ?? '', writtenAt, writtenAt);
    const target = await openTarget(bed.engine.host, image ?? '', { format: 'qcow2', writes: false });
    const { disks } = await target.list({});
    await target.close();
    assert.deepEqual(
      disks.map((disk) => disk['active-elsewhere']),
      [active],
    );
  });
