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

const snapshotOf = (bed: EngineBed, node: string): Record<string, string> => ({
  ...{ 'node-name': node, 'snapshot-file': bed.path('x.qcow2'), format: 'qcow2' },
});

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
    assert.match(await bed.refusal('blockdev-snapshot-sync', snapshotOf(bed, below)), /backing hd of 'one'/);
    assert.equal(await make('p3'), below);
    assert.ok(!bed.engine.graph.nodes.has('two') && !bed.engine.graph.nodes.has('one'));
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

/** A to D, opened by names of their own, whose guest has gone down from D to B. */
async function ownNodes(t: TestContext): Promise<{ bed: EngineBed; qmp: PointsTarget }> {
  const { bed, qmp } = await serve(t);
  for (const [name, backing] of [
    ['B', 'A'],
    ['C', 'B'],
    ['D', 'C'],
  ] as const) {
    await add(bed, name);
    await bed.execute('blockdev-snapshot', { node: backing, overlay: name });
    await bed.guest('write -P 2 1M 64k');
  }
  await bed.execute('block-commit', { 'job-id': 'c', device: 'D', 'base-node': 'B' });
  await bed.event('BLOCK_JOB_READY', 'c');
  await bed.execute('block-job-complete', { device: 'c' });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
  assert.deepEqual(await bed.layers(), ['B', 'A']);
  return { bed, qmp };
}

const CLOSING = '[D] and [C], which the disk has left, are closed first; their files stay.';
const isOpen = (bed: EngineBed, name: string): boolean => bed.engine.graph.nodes.has(name);

for (const way of ['its own commands', 'plain QMP']) {
  const isQmp = way === 'plain QMP';

  test(`a point of a disk that was committed and left open closes that first, and says so: ${way}`, async (t) => {
    const { bed, qmp } = await ownNodes(t);
    const create = (isDryRun: boolean): ReturnType<typeof qmp.create> => {
      const args = { name: 'p1', 'dry-run': isDryRun };
      return isQmp ? qmp.create(args) : bed.engine.execute('x-point-create', args);
    };
    const { plan } = await create(true);
    assert.equal(plan.words[0], CLOSING);
    assert.ok(isOpen(bed, 'D') && isOpen(bed, 'C'));
    const done = await create(false);
    assert.equal(done.plan.words[0], CLOSING);
    if (isQmp)
      assert.deepEqual(
        done.commands?.map(({ execute, arguments: args }) => args['node-name'] ?? execute),
        ['D', 'C', 'transaction'],
      );
    assert.ok(!isOpen(bed, 'D') && !isOpen(bed, 'C'));
    assert.deepEqual((await bed.layers()).slice(1), ['B', 'A']);
    await bed.guest('read -P 2 1M 64k');
  });

  test(`going back closes what is left open first, and says so: ${way}`, async (t) => {
    const { bed, qmp } = await ownNodes(t);
    await bed.execute('stop');
    await bed.execute('system_reset');
    const revert = (isDryRun: boolean): ReturnType<typeof qmp.revert> => {
      const args = { image: 'A', 'dry-run': isDryRun };
      return isQmp ? qmp.revert(args) : bed.engine.execute('x-point-revert', args);
    };
    assert.equal((await revert(true)).plan.words[0], CLOSING);
    assert.ok(isOpen(bed, 'D') && isOpen(bed, 'C'));
    assert.equal((await revert(false)).plan.words[0], CLOSING);
    assert.deepEqual((await bed.layers()).slice(1), ['A']);
    assert.ok(!isOpen(bed, 'D') && !isOpen(bed, 'C'));
    await bed.guest('read -P 0x11 1M 64k');
  });

  test(`a deletion that commits closes what is left open first, and says so: ${way}`, async (t) => {
    const { bed, qmp } = await serve(t);
    await qmp.create({ name: 'p1' });
    const [below = ''] = await bed.layers();
    await bed.guest('write -P 2 1M 64k');
    await add(bed, 'one');
    await bed.execute('blockdev-snapshot', { node: below, overlay: 'one' });
    await bed.execute('block-commit', { 'job-id': 'c', device: 'one', 'base-node': below });
    await bed.event('BLOCK_JOB_READY', 'c');
    await bed.execute('block-job-complete', { device: 'c' });
    await bed.event('BLOCK_JOB_COMPLETED', 'c');
    const remove = async (isDryRun: boolean): Promise<readonly string[]> => {
      const args = { name: 'p1', 'dry-run': isDryRun };
      const answer = await (isQmp ? qmp.delete(args) : bed.engine.execute('x-point-delete', args));
      return answer.plan.words;
    };
    const told = '[one], which the disk has left, is closed first; its file stays.';
    assert.equal((await remove(true))[0], told);
    assert.ok(isOpen(bed, 'one'));
    assert.equal((await remove(false))[0], told);
    while ((await bed.engine.execute('x-point-list', { nodes: [] })).queue.length > 0)
      await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(
      bed.events.filter(({ event, data }) => event === 'x-point-deleted' && data['error'] !== undefined),
      [],
    );
    assert.deepEqual(await bed.layers(), ['A']);
    assert.ok(!isOpen(bed, 'one'));
    await bed.guest('read -P 2 1M 64k');
  });

  test(`where somebody reads what was left open, the dry run says what is in the way: ${way}`, async (t) => {
    const { bed, qmp } = await ownNodes(t);
    await bed.image('E', { backing: 'C' });
    await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
    await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'E' });
    const args = { name: 'p1', disks: [{ node: 'virtio0' }], 'dry-run': true };
    await assert.rejects(
      isQmp ? qmp.create(args) : bed.engine.execute('x-point-create', args),
      /'B' is the backing file of 'C', and no disk/,
    );
  });
}
