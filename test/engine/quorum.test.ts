import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

function files(bed: EngineBed, names: string[], sizeBytes = MiB): void {
  for (const name of names) writeFileSync(bed.path(name), Buffer.alloc(sizeBytes, 1));
}

const file = (bed: EngineBed, name: string): { [key: string]: string } => ({
  ...{ driver: 'file', 'node-name': name },
  filename: bed.path(name),
});

test('bad children and requests without a quorum are events', async (t) => {
  const bed = new EngineBed(t);
  files(bed, ['a', 'b', 'c']);
  const children = ['a', 'b', 'c'].map((name) => file(bed, name));
  await bed.execute('blockdev-add', { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 2, children });
  await bed.device('q');
  writeFileSync(bed.path('b'), 'x', { flag: 'r+' });
  await bed.guest('read -P 1 0 64k');
  const sectors = { 'sector-num': 0, 'sectors-count': 128 };
  assert.deepEqual(bed.events, [
    { event: 'QUORUM_REPORT_BAD', data: { type: 'read', 'node-name': 'b', ...sectors } },
  ]);
  writeFileSync(bed.path('c'), 'y', { flag: 'r+' });
  await assert.rejects(bed.guest('read 0 64k'));
  assert.deepEqual(
    bed.events.filter(({ event }) => event === 'QUORUM_FAILURE'),
    [{ event: 'QUORUM_FAILURE', data: { reference: 'q', ...sectors } }],
  );
});

test('a guest writes while children come and go, and those that stay hold all of it', async (t) => {
  const bed = new EngineBed(t);
  files(bed, ['a', 'b', 'c']);
  await bed.execute('blockdev-add', file(bed, 'c'));
  const children = [file(bed, 'a'), file(bed, 'b')];
  await bed.execute('blockdev-add', { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 1, children });
  await bed.device('q');
  let isDone = false;
  const writing = (async (): Promise<void> => {
    for (let value = 2; !isDone; value = (value % 250) + 2) await bed.guest(`write -P ${value} 0 1M`);
  })();
  for (let round = 0; round < 20; round++) {
    await bed.execute('x-blockdev-change', { parent: 'q', node: 'c' });
    await bed.execute('x-blockdev-change', { parent: 'q', child: 'children.2' });
  }
  await bed.execute('x-blockdev-change', { parent: 'q', node: 'c' });
  isDone = true;
  await writing;
  await bed.guest('write -P 9 0 1M');
  for (const name of ['a', 'b', 'c']) {
    const node = bed.engine.graph.nodes.get(name);
    const bytes = Buffer.alloc(MiB);
    await node?.io.readBuffer(0, bytes);
    assert.ok(bytes.equals(Buffer.alloc(MiB, 9)), name);
  }
  assert.deepEqual(bed.events, []);
});

test('a quorum is the base that a commit writes to', async (t) => {
  const bed = new EngineBed(t);
  files(bed, ['a', 'b'], DISK_BYTES);
  const children = ['a', 'b'].map((name) => ({ driver: 'raw', file: file(bed, name) }));
  await bed.execute('blockdev-add', { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 2, children });
  await bed.image('top', { backing: 'q' });
  await bed.device('top');
  await bed.guest('write -P 7 64k 64k');
  await bed.execute('block-commit', { device: 'top', 'job-id': 'j' });
  await bed.event('BLOCK_JOB_READY', 'j');
  await bed.execute('block-job-complete', { device: 'j' });
  await bed.event('BLOCK_JOB_COMPLETED', 'j');
  assert.equal(bed.engine.devices.get('virtio0')?.backend.node.name, 'q');
  await bed.guest('read -P 7 64k 64k');
  assert.deepEqual(
    bed.events.filter(({ event }) => event.startsWith('QUORUM')),
    [],
  );
});

const MIRROR = { 'job-id': 'm', device: 'q', target: 'd', sync: 'full', replaces: 'b' };

/** A quorum q of a, b and c, and d, for MIRROR. */
async function mirrorable(t: TestContext): Promise<EngineBed> {
  const bed = new EngineBed(t);
  files(bed, ['a', 'b', 'c', 'd']);
  for (const name of ['b', 'd']) await bed.execute('blockdev-add', file(bed, name));
  const children = [file(bed, 'a'), 'b', file(bed, 'c')];
  await bed.execute('blockdev-add', { driver: 'quorum', 'node-name': 'q', 'vote-threshold': 2, children });
  await bed.device('q');
  return bed;
}

test('a mirror of a quorum takes the place of one of its children, where nobody else looks at it', async (t) => {
  const bed = await mirrorable(t);
  writeFileSync(bed.path('b'), 'broken', { flag: 'r+' });
  const add = { type: 'nbd', id: 'e', 'node-name': 'b' };
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd.sock') } } });
  await bed.execute('block-export-add', add);
  assert.equal(
    await bed.refusal('blockdev-mirror', MIRROR),
    "Cannot replace 'b' by a node mirrored from 'q', because it cannot be guaranteed that doing so would not lead to " +
      'an abrupt change of visible data',
  );
  await bed.execute('block-export-del', { id: 'e' });
  const lines: string[] = [];
  bed.engine.graph.onDriverLine = (line) => void lines.push(line);
  const childOf = (): string | undefined => bed.engine.graph.node('q').children.get('children.1')?.node.name;

  await bed.execute('blockdev-mirror', MIRROR);
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('block-export-add', add);
  await bed.execute('job-complete', { id: 'm' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['error'], 'Operation not permitted');
  assert.match(lines.join(), /^Can no longer replace 'b' by 'd', because /);
  assert.equal(childOf(), 'b');
  await bed.execute('block-export-del', { id: 'e' });

  bed.events.splice(0);
  await bed.execute('blockdev-mirror', MIRROR);
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('job-complete', { id: 'm' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['error'], undefined);
  assert.equal(childOf(), 'd');
  bed.events.splice(0);
  await bed.guest('read -P 1 0 64k');
  assert.deepEqual(bed.events, []);
});

test('a mirror whose node to replace is gone by then is not completed, and goes on', async (t) => {
  const bed = await mirrorable(t);
  await bed.execute('blockdev-mirror', MIRROR);
  await bed.event('BLOCK_JOB_READY', 'm');
  await bed.execute('x-blockdev-change', { parent: 'q', child: 'children.1' });
  await bed.execute('blockdev-del', { 'node-name': 'b' });

  for (let twice = 0; twice < 2; twice++)
    assert.equal(await bed.refusal('job-complete', { id: 'm' }), "Node name 'b' not found");
  await bed.guest('write -P 7 64k 64k');
  await bed.execute('block-job-cancel', { device: 'm' });
  assert.equal((await bed.event('BLOCK_JOB_COMPLETED', 'm'))['error'], undefined);
  assert.equal(readFileSync(bed.path('d'))[64 * 1024], 7);
});
