import assert from 'node:assert/strict';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { type PointsTarget, targetOver } from '../../src/programs/points/targets.js';
import { EngineBed, MiB } from './engine-bed.js';

/**
 * An image that has a node name stays open, on its backing file, when it has been committed and its users have gone down: it
 * is on top of a chain, and not the disk.
 */

interface Served {
  readonly bed: EngineBed;
  readonly qmp: PointsTarget;
  /** Commands that fail when they come by plain QMP. */
  readonly failing: Set<string>;
}

async function serve(t: TestContext): Promise<Served> {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const failing = new Set<string>();
  const qmp = await targetOver(
    bed.engine.host,
    {
      execute: async (command, args = {}) => {
        if (failing.has(command)) throw new Error(`no ${command} today`);
        return command === 'query-commands' ? [] : bed.execute(command, args);
      },
      onEvent: (listener) => bed.engine.onEvent(listener),
      ended: bed.engine.ended,
      close: () => Promise.resolve(),
    },
    bed.folder,
  );
  return { bed, qmp, failing };
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
    // Who opened them may need them; he has been told in their order.
    await assert.rejects(
      make('p3'),
      /\[two\] and \[one\], which nobody uses, are open above .*in this order/,
    );
    for (const name of ['two', 'one']) await bed.execute('blockdev-del', { 'node-name': name });
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
  await commitActive(bed, 'D', 'B');
  assert.deepEqual(await bed.layers(), ['B', 'A']);
  return { bed, qmp };
}

async function commitActive(bed: EngineBed, device: string, base: string): Promise<void> {
  await bed.execute('block-commit', { 'job-id': 'c', device, 'base-node': base });
  await bed.event('BLOCK_JOB_READY', 'c');
  await bed.execute('block-job-complete', { device: 'c' });
  await bed.event('BLOCK_JOB_COMPLETED', 'c');
}

/** A guest that has gone down to B, on A which holds a point, from an image that was opened for going back by plain QMP. */
async function ownImageLeft(t: TestContext): Promise<Served & { left: string }> {
  const served = await serve(t);
  const { bed, qmp } = served;
  const second = { node: 'A', 'new-node-name': 'B', file: bed.path('B.qcow2') };
  await qmp.create({ name: 'first', disks: [second] });
  await bed.guest('write -P 0x21 1M 64k');
  await bed.snapshot('B', 'C');
  await restart(bed);
  await qmp.revert({ image: 'B' });
  const [left = ''] = await bed.layers();
  await bed.execute('cont');
  await bed.guest('write -P 2 1M 64k');
  await commitActive(bed, left, 'B');
  assert.deepEqual(await bed.layers(), ['B', 'A']);
  assert.ok(isOpen(bed, left));
  return { ...served, left };
}

async function restart(bed: EngineBed): Promise<void> {
  await bed.execute('stop');
  await bed.execute('system_reset');
}

const isOpen = (bed: EngineBed, name: string): boolean => bed.engine.graph.nodes.has(name);
const closedFirst = (name: string): string =>
  `[${name}], which nobody uses, is closed first; its file stays.`;

test('what a deletion has left open is closed for the next point, whoever opened it', async (t) => {
  for (const whose of ['made for points', 'of its user'] as const) {
    const { bed, qmp } = await serve(t);
    await qmp.create({ name: 'p1' });
    const [below = ''] = await bed.layers();
    if (whose === 'of its user') {
      await add(bed, 'mine');
      await bed.execute('blockdev-snapshot', { node: below, overlay: 'mine' });
      await bed.guest('write -P 2 0 2M');
      // From then on it is known as the disk's.
      await qmp.create({ name: 'once' });
      await qmp.delete({ name: 'once' });
      await bed.execute('block-stream', { 'job-id': 's', device: 'mine', 'base-node': 'A' });
      await bed.event('BLOCK_JOB_COMPLETED', 's');
    } else {
      await restart(bed);
      await qmp.revert({ name: 'p1', disks: [{ node: below, 'new-node-name': 'mine' }] });
      await bed.execute('cont');
    }
    assert.deepEqual(await bed.layers(), ['mine', 'A']);
    await bed.guest('write -P 2 1M 64k');
    rmSync(bed.path('A.after-p1.qcow2'));
    await qmp.delete({ name: 'p1' });
    assert.deepEqual(await bed.layers(), ['A']);
    assert.ok(isOpen(bed, 'mine'));
    assert.equal((await qmp.create({ name: 'p2' })).plan.words[0], closedFirst('mine'));
    assert.ok(!isOpen(bed, 'mine'));
    assert.equal(existsSync(bed.path('mine.qcow2')), whose === 'of its user');
    await bed.guest('read -P 2 1M 64k');
  }
});

test('what was closed for going back, or for a deletion, that fails by plain QMP is told', async (t) => {
  for (const [command, act] of [
    ['blockdev-mirror', (qmp) => qmp.revert({ image: 'A' })],
    ['block-commit', (qmp) => qmp.delete({ name: 'first' })],
  ] as ReadonlyArray<readonly [string, (qmp: PointsTarget) => Promise<unknown>]>) {
    const { bed, qmp, failing, left } = await ownImageLeft(t);
    await restart(bed);
    // Else what they hold would keep B from going down.
    for (const name of readdirSync(bed.folder).filter((one) => /^C|after/.test(one))) rmSync(bed.path(name));
    failing.add(command);
    await assert.rejects(act(qmp), {
      message: `no ${command} today; '${left}', which the disk had left, has been closed`,
    });
    assert.deepEqual(await bed.layers(), ['B', 'A']);
    failing.clear();
    await act(qmp);
  }
});

for (const way of ['its own commands', 'plain QMP']) {
  const isQmp = way === 'plain QMP';
  type Verbs = Pick<PointsTarget, 'create' | 'revert'>;
  const verbsOf = (bed: EngineBed, qmp: PointsTarget): Verbs => ({
    create: (args) => (isQmp ? qmp.create(args) : bed.engine.execute('x-point-create', args)),
    revert: (args) => (isQmp ? qmp.revert(args) : bed.engine.execute('x-point-revert', args)),
  });

  test(`a point of a disk that has left what was opened for points closes that first, and says so: ${way}`, async (t) => {
    const { bed, qmp, left } = await ownImageLeft(t);
    const { create } = verbsOf(bed, qmp);
    const { plan } = await create({ name: 'p1', 'dry-run': true });
    assert.equal(plan.words[0], closedFirst(left));
    assert.ok(isOpen(bed, left));
    const done = await create({ name: 'p1' });
    assert.equal(done.plan.words[0], closedFirst(left));
    if (isQmp)
      assert.deepEqual(
        (done as Awaited<ReturnType<typeof qmp.create>>).commands?.map(
          ({ execute, arguments: args }) => args['node-name'] ?? execute,
        ),
        [left, 'transaction'],
      );
    assert.ok(!isOpen(bed, left));
    assert.deepEqual((await bed.layers()).slice(1), ['B', 'A']);
    await bed.guest('read -P 2 1M 64k');
  });

  test(`what was closed for a point that could not be made is told: ${way}`, async (t) => {
    const { bed, qmp, left } = await ownImageLeft(t);
    const { create } = verbsOf(bed, qmp);
    const nobody = { name: 'p1', quiesce: bed.path('nobody') };
    await assert.rejects(create(nobody), ({ message }: Error) =>
      message.endsWith(`; '${left}', which the disk had left, has been closed`),
    );
    assert.ok(!isOpen(bed, left));
    await assert.rejects(create(nobody), ({ message }: Error) => !message.includes(left));
    assert.deepEqual(await bed.layers(), ['B', 'A']);
    await create({ name: 'p1' });
    await bed.guest('read -P 2 1M 64k');
  });

  test(`going back closes what was opened for points and left, and says so: ${way}`, async (t) => {
    const { bed, qmp, left } = await ownImageLeft(t);
    await restart(bed);
    const { revert } = verbsOf(bed, qmp);
    assert.equal((await revert({ image: 'A', 'dry-run': true })).plan.words[0], closedFirst(left));
    assert.ok(isOpen(bed, left));
    assert.equal((await revert({ image: 'A' })).plan.words[0], closedFirst(left));
    assert.ok(!isOpen(bed, left));
    assert.deepEqual((await bed.layers()).slice(1), ['A']);
    await bed.guest('read -P 0x11 1M 64k');
  });

  test(`what others have opened above a disk is theirs to close: ${way}`, async (t) => {
    const { bed, qmp } = await ownNodes(t);
    const { create, revert } = verbsOf(bed, qmp);
    await restart(bed);
    const inOrder = /\[D\] and \[C\], which nobody uses, are open above 'B': .* blockdev-del, in this order/;
    for (const isDryRun of [true, false]) {
      await assert.rejects(create({ name: 'p1', 'dry-run': isDryRun }), inOrder);
      await assert.rejects(revert({ image: 'A', 'dry-run': isDryRun }), inOrder);
    }
    assert.ok(isOpen(bed, 'D') && isOpen(bed, 'C'));
    assert.deepEqual(await bed.layers(), ['B', 'A']);
    for (const name of ['D', 'C']) await bed.execute('blockdev-del', { 'node-name': name });
    await create({ name: 'p1' });
    await revert({ image: 'A' });
    await bed.guest('read -P 0x11 1M 64k');
  });

  test(`an overlay that is prepared above a disk stays: ${way}`, async (t) => {
    const { bed, qmp } = await serve(t);
    await qmp.create({ name: 'p1' });
    const [top = '', below = ''] = await bed.layers();
    await bed.image('next', { backing: top });
    await assert.rejects(
      verbsOf(bed, qmp).create({ name: 'p2' }),
      /\[next\], which nobody uses, is open above/,
    );
    assert.ok(isOpen(bed, 'next'));
    assert.deepEqual(await listed(bed, 'virtio0'), [
      { node: top, elsewhere: undefined, points: 'p1 usable' },
    ]);
    // What it stands on goes on to show the same.
    await bed.guest('write -P 2 1M 64k');
    await (isQmp ? qmp.delete({ name: 'p1' }) : bed.engine.execute('x-point-delete', { name: 'p1' }));
    while ((await bed.engine.execute('x-point-list', { nodes: [] })).queue.length > 0)
      await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(await bed.layers(), [top]);
    assert.equal(below, 'A');
    assert.ok(isOpen(bed, 'next'));
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
