import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { type PointsTarget, targetOver } from '../../src/programs/points/targets.js';
import { EngineBed, MiB } from './engine-bed.js';

/**
 * An image that has a node name stays open, on its backing file, when it has been committed and its users have gone down: it
 * is on top of a chain, and not the disk.
 */

async function serve(t: TestContext): Promise<{ bed: EngineBed; qmp: PointsTarget }> {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const qmp = await targetOver(
    bed.engine.host,
    {
      execute: async (command, args = {}) => (command === 'query-commands' ? [] : bed.execute(command, args)),
      onEvent: (listener) => bed.engine.onEvent(listener),
      ended: bed.engine.ended,
      close: () => Promise.resolve(),
    },
    bed.folder,
  );
  return { bed, qmp };
}

async function listed(bed: EngineBed, node?: string): Promise<unknown[]> {
  const { disks } = await bed.engine.execute('x-point-list', node === undefined ? {} : { nodes: [node] });
  return disks.map((disk) => ({
    node: disk.node,
    elsewhere: disk['active-elsewhere'],
    points: disk.points.map(({ name, state }) => `${name} ${state}`).join(', '),
  }));
}

async function add(bed: EngineBed, node: string): Promise<void> {
  await bed.image(node, { backing: null });
}

test('who went back by plain QMP and deletes the point has the disk where its users are', async (t) => {
  const { bed, qmp } = await serve(t);
  await qmp.create({ name: 'p1' });
  await bed.guest('write -P 1 0 6M');
  await qmp.create({ name: 'p2' });
  const before = readdirSync(bed.folder);
  await bed.execute('stop');
  await bed.execute('system_reset');
  await qmp.revert({ name: 'p2' });
  const made = readdirSync(bed.folder).filter((name) => name.endsWith('.qcow2') && !before.includes(name));
  assert.equal(made.length, 1);
  // What was left stands on what is to change, until its user removes it.
  rmSync(bed.path('A.after-p2.qcow2'));
  await qmp.delete({ name: 'p2' });
  const [top = '', ...more] = await bed.layers();
  assert.deepEqual(more, ['A']);
  assert.deepEqual(await listed(bed, 'virtio0'), [{ node: top, elsewhere: undefined, points: 'p1 usable' }]);
  assert.deepEqual(await listed(bed), await listed(bed, 'virtio0'));
  // They were made for a point, and nobody needs them.
  assert.deepEqual(
    made.filter((name) => existsSync(bed.path(name))),
    [],
  );
  const { images } = await bed.engine.execute('x-point-create', { name: 'p3' });
  assert.deepEqual(
    images.map(({ node }) => node),
    [top],
  );
  await bed.guest('read -P 1 0 6M');
});

for (const way of ['its own commands', 'plain QMP'])
  test(`images that another program has committed and not closed are not the disk: ${way}`, async (t) => {
    const { bed, qmp } = await serve(t);
    const make = async (name: string): Promise<string | undefined> => {
      const { images } =
        way === 'plain QMP'
          ? await qmp.create({ name })
          : await bed.engine.execute('x-point-create', { name });
      return images[0]?.node;
    };
    await make('p1');
    const [below = ''] = await bed.layers();
    await add(bed, 'one');
    await bed.execute('blockdev-snapshot', { node: below, overlay: 'one' });
    assert.equal(await make('p2'), 'one');
    const [held = ''] = await bed.layers();
    await add(bed, 'two');
    await bed.execute('blockdev-snapshot', { node: held, overlay: 'two' });
    await bed.execute('block-commit', { 'job-id': 'c', device: 'two', 'base-node': below });
    await bed.event('BLOCK_JOB_READY', 'c');
    await bed.execute('block-job-complete', { device: 'c' });
    await bed.event('BLOCK_JOB_COMPLETED', 'c');
    assert.deepEqual(await bed.layers(), [below, 'A']);
    assert.ok(bed.engine.graph.nodes.has('two'));
    await bed.guest(`write -P 7 0 ${MiB}`);
    for (const node of [undefined, 'virtio0'])
      assert.deepEqual(await listed(bed, node), [
        { node: below, elsewhere: undefined, points: 'p1 usable, p2 lost' },
      ]);
    // QEMU makes no image above one that another has below it.
    await assert.rejects(make('p3'), /is used as backing hd of 'one'/);
    for (const node of ['two', 'one']) await bed.execute('blockdev-del', { 'node-name': node });
    assert.equal(await make('p3'), below);
    await bed.execute('stop');
    await bed.execute('system_reset');
    await qmp.revert({ name: 'p3' });
    assert.deepEqual((await bed.layers()).slice(1), [below, 'A']);
  });

test('what was opened for points by plain QMP and is left by going back is closed', async (t) => {
  const { bed, qmp } = await serve(t);
  await qmp.create({ name: 'p1' });
  await bed.execute('stop');
  await bed.execute('system_reset');
  await qmp.revert({ name: 'p1' });
  const [named = ''] = await bed.layers();
  for (const name of ['p2', 'p3']) await qmp.create({ name });
  assert.ok((await bed.layers()).includes(named));
  await qmp.revert({ name: 'p1' });
  const images = [...bed.engine.graph.nodes.values()].filter(({ driver }) => driver.name === 'qcow2');
  assert.deepEqual(images.map(({ name }) => name).sort(), (await bed.layers()).sort());
});
