import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { basename } from 'node:path';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import type { CommandResult } from '../../src/schema/commands.js';
import { EngineBed, MiB } from './engine-bed.js';

type Listed = CommandResult<'x-point-list'>;

const list = async (bed: EngineBed): Promise<Listed> => bed.engine.execute('x-point-list', {});

/** NAME STATE FILE of the points of the only disk, or of one of them. */
async function points(bed: EngineBed, disk?: string): Promise<string[]> {
  const { disks } = await list(bed);
  const found = disk === undefined ? disks[0] : disks.find((one) => one.disk === disk);
  return (found?.points ?? []).map(({ name, state, file }) => `${name} ${state} ${basename(file ?? '-')}`);
}

/** Waits for the end of a deletion; answers its error. */
async function deleted(bed: EngineBed, name: string, count = 1): Promise<unknown> {
  for (;;) {
    const next = deferred();
    const stop = bed.engine.onEvent(() => next.resolve());
    const found = bed.events.filter(
      ({ event, data }) => event === 'x-point-deleted' && data['name'] === name,
    );
    if (found.length < count) await next.promise;
    stop();
    if (found.length >= count) return found[count - 1]?.data['error'];
  }
}

/** A disk with points p1 to pN, each before a write of another pattern at N MiB. */
async function diskWithPoints(bed: EngineBed, count: number): Promise<void> {
  await bed.chain('A');
  for (let i = 1; i <= count; i++) {
    await bed.execute('x-point-create', { name: `p${i}` });
    await bed.guest(`write -P ${i} ${i * MiB} 1M`);
  }
}

/** What the guest sees after p1 to pN: their patterns from 1 MiB on, up to `last`. */
async function expectGuest(bed: EngineBed, last: number, count: number): Promise<void> {
  await bed.guest('read -P 0x11 0 1M');
  for (let i = 1; i <= count; i++)
    await bed.guest(`read -P ${i <= last ? i : i < 4 ? 0x11 : 0} ${i * MiB} 1M`);
}

test('a point is made, told of beforehand, listed, and its name not given twice', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  const planned = await bed.engine.execute('x-point-create', { name: 'p1', 'dry-run': true });
  assert.deepEqual([await bed.layers(), planned.plan.bytes, planned.images[0]?.node], [['A'], 0, 'A']);
  assert.ok(!existsSync(bed.path('A.points')));
  const made = await bed.engine.execute('x-point-create', { name: 'p1' });
  assert.equal(made.images[0]?.file, bed.path('A.after-p1.qcow2'));
  assert.deepEqual(await points(bed), ['p1 usable A.qcow2']);
  assert.match(await bed.refusal('x-point-create', { name: 'p1' }), /disk 'A' has a point 'p1' already/);
  assert.match(await bed.refusal('x-point-create', { name: '../x' }), /is called by a letter/);
  const { disks } = await list(bed);
  assert.equal(disks[0]?.['points-file'], bed.path('A.points'));
});

test('two points are deleted in a row without a wait, the data stays right, and the files go', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 4);
  const answers = [];
  for (const name of ['p2', 'p3', 'p2']) answers.push(await bed.engine.execute('x-point-delete', { name }));
  assert.equal(answers[0]?.id, answers[2]?.id);
  assert.equal(answers[1]?.state, 'queued');
  assert.deepEqual([await deleted(bed, 'p2'), await deleted(bed, 'p3')], [undefined, undefined]);
  assert.deepEqual(
    (await points(bed)).map((line) => line.replace(/ [^ ]*$/, '')),
    ['p1 usable', 'p4 usable'],
  );
  assert.equal((await bed.layers()).length, 3);
  await expectGuest(bed, 4, 4);
  // Who asks again after a time-out hears that it is done; a name that was never there is an error.
  assert.equal((await bed.engine.execute('x-point-delete', { name: 'p2' })).state, 'done');
  assert.match(await bed.refusal('x-point-delete', { name: 'p9' }), /there is no point 'p9'/);
  // p4 is what the disk was then.
  await bed.execute('stop');
  await bed.execute('system_reset');
  await bed.execute('x-point-revert', { name: 'p4' });
  await expectGuest(bed, 3, 4);
});

test('a point of several disks is of one moment, and one of them refused is none of it', async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['A', 'B', 'spare']) await bed.image(name);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  for (const name of ['A', 'B'])
    await bed.execute('block-export-add', { type: 'nbd', id: name, 'node-name': name, writable: true });
  assert.match(
    await bed.refusal('x-point-create', { name: 'p1', disks: [{ node: 'spare' }] }),
    /nobody uses/,
  );
  const made = await bed.engine.execute('x-point-create', { name: 'p1' });
  const overlayOf = (disk: string): string =>
    made.images.find((image) => image.disk === disk)?.['new-node-name'] ?? '';
  assert.equal(made.images.length, 2);
  const both = ['p1 usable A.qcow2', 'p1 usable B.qcow2'];
  const told = async (): Promise<string[]> => [...(await points(bed, 'A')), ...(await points(bed, 'B'))];
  assert.deepEqual(await told(), both);
  // The transaction fails when the first overlay has been made: its folder is not there.
  const disks = [{ node: overlayOf('A') }, { node: overlayOf('B'), file: bed.path('none/x.qcow2') }];
  assert.match(await bed.refusal('x-point-create', { name: 'p2', disks }), /No such file or directory/);
  assert.deepEqual(await told(), both);
  assert.deepEqual(
    readdirSync(bed.folder).filter((name) => name.includes('p2')),
    [],
  );
  await bed.execute('x-point-create', { name: 'p2' });
  assert.match(await bed.refusal('x-point-delete', { name: 'p1', nodes: ['spare'] }), /there is no point/);
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.equal(await deleted(bed, 'p1'), undefined);
  assert.deepEqual(
    (await told()).map((line) => line.split(' ')[0]),
    ['p2', 'p2'],
  );
});

test('keep deletes the oldest beyond so many', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 3);
  const made = await bed.engine.execute('x-point-create', { name: 'p4', keep: 2 });
  assert.deepEqual(made.deletes, ['p1', 'p2']);
  assert.deepEqual([await deleted(bed, 'p1'), await deleted(bed, 'p2')], [undefined, undefined]);
  assert.deepEqual(
    (await points(bed)).map((line) => line.split(' ').slice(0, 2).join(' ')),
    [...['p3 usable', 'p4 usable']],
  );
  await expectGuest(bed, 3, 3);
});

test('nobody goes back under a guest or a client that may write, and who it is is told', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const revert = { name: 'p1' };
  assert.match(
    await bed.refusal('x-point-revert', revert),
    /the guest's device 'virtio0' \(the guest is running\)/,
  );
  await bed.execute('stop');
  assert.match(await bed.refusal('x-point-revert', revert), /\(the guest is paused\)/);
  await bed.execute('system_reset');
  const top = (await bed.layers())[0] ?? '';
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  const exported = { type: 'nbd', id: 'e', 'node-name': top, writable: true };
  await bed.execute('block-export-add', exported).catch(() => undefined);
  if (((await bed.execute('query-block-exports')) as unknown[]).length > 0) {
    assert.match(await bed.refusal('x-point-revert', revert), /export 'e'/);
    await bed.execute('block-export-del', { id: 'e' });
  }
  const { plan } = await bed.engine.execute('x-point-revert', { ...revert, 'dry-run': true });
  assert.deepEqual(plan.ends, [bed.path('A.after-p1.qcow2'), bed.path('A.after-p2.qcow2')]);
  assert.match(plan.words.join(' '), /Later points are no more: 'p2'/);
  await bed.execute('x-point-revert', revert);
  assert.deepEqual(await points(bed), ['p1 usable A.qcow2']);
  await expectGuest(bed, 0, 2);
  await bed.execute('cont');
  await bed.guest('write -P 9 1M 1M');
  assert.deepEqual(await points(bed), ['p1 usable A.qcow2']);
  assert.equal((await bed.layers()).length, 2);
});

test('a point whose image another program wrote, committed or took in is told as what it is', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 4);
  const [top = '', third = '', second = '', first = ''] = await bed.layers();
  const ended = async (id: string): Promise<void> => void (await bed.event('BLOCK_JOB_COMPLETED', id));
  // Plain QMP: p3's image goes down into p2's.
  await bed.execute('block-commit', { 'job-id': 'c', device: top, 'top-node': third, 'base-node': second });
  await ended('c');
  assert.deepEqual(await points(bed), [
    ...['p1 usable A.qcow2', 'p2 usable A.after-p1.qcow2'],
    ...['p3 lost -', 'p4 usable A.after-p2.qcow2'],
  ]);
  // And p1's image is taken in from above.
  await bed.execute('block-stream', { 'job-id': 's', device: second, 'base-node': first });
  void ended;
});

/** A guest agent; answers what it was asked. `refused`: what it does not do. */
async function guestAgent(t: TestContext, path: string, refused: readonly string[]): Promise<string[]> {
  const asked: string[] = [];
  const server = createServer((socket) => {
    socket.on('data', (chunk: Buffer) => {
      for (const line of chunk.toString('latin1').replaceAll('\xff', '').split('\n').filter(Boolean)) {
        const { execute, arguments: args } = JSON.parse(line) as {
          execute: string;
          arguments?: { id: number };
        };
        if (args === undefined) asked.push(execute);
        const answer = refused.includes(execute) ? { error: { desc: 'no' } } : { return: args?.id ?? 1 };
        socket.write(`${JSON.stringify(answer)}\n`);
      }
    });
  });
  await new Promise<void>((listening) => server.listen(path, listening));
  t.after(() => server.close());
  return asked;
}

test('the guest is frozen for the moment; a point that was made stays one when it cannot be thawed', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 1);
  const [good, stuck, busy] = ['good', 'stuck', 'busy'].map((name) => bed.path(name)) as [
    string,
    string,
    string,
  ];
  const asked = await guestAgent(t, good, []);
  const made = await bed.engine.execute('x-point-create', { name: 'frozen', quiesce: good });
  assert.equal(made.quiesced, true);
  assert.deepEqual(asked, ['guest-fsfreeze-freeze', 'guest-fsfreeze-thaw']);

  await guestAgent(t, stuck, ['guest-fsfreeze-thaw']);
  const refusal = await bed.refusal('x-point-create', { name: 'stuck', quiesce: stuck });
  assert.match(refusal, /may be frozen still/);
  assert.ok(existsSync(bed.path('A.after-stuck.qcow2')), 'the image that the guest writes to now');
  await bed.guest('write -P 9 1M 1M');

  await guestAgent(t, busy, ['guest-fsfreeze-freeze']);
  assert.match(
    await bed.refusal('x-point-create', { name: 'busy', quiesce: busy }),
    /guest-fsfreeze-freeze: no/,
  );
  assert.ok(!existsSync(bed.path('A.after-busy.qcow2')));
  assert.deepEqual(
    (await points(bed)).map((line) => line.split(' ').slice(0, 2).join(' ')),
    ['p1 usable', 'frozen usable', 'stuck usable'],
  );
});
