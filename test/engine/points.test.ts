import assert from 'node:assert/strict';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import { createRealHost } from '../../src/host/real.js';
import { PointVerb } from '../../src/monitor/points/point-file.js';
import type { CommandResult } from '../../src/schema/commands.js';
import type { JsonObject } from '../../src/schema/types.js';
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

test('keep deletes an old point of which another disk has no part any more', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('B');
  await bed.engine.addDevice('B', { id: 'virtio1' });
  const create = (name: string): Promise<CommandResult<'x-point-create'>> =>
    bed.engine.execute('x-point-create', { name, keep: 1 });
  const first = await create('p1');
  const [top] = first.images.filter(({ disk }) => disk === 'B');
  await bed.execute('x-point-delete', { name: 'p1', nodes: [top?.['new-node-name'] ?? ''] });
  assert.equal(await deleted(bed, 'p1'), undefined);
  assert.deepEqual((await create('p2')).deletes, ['p1']);
  assert.equal(await deleted(bed, 'p1', 2), undefined);
  assert.deepEqual(await points(bed, 'A'), ['p2 usable A.qcow2']);
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

test('a disk goes back to an image that holds no point: points below it stay, those above are told', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('x-point-create', { name: 'p1' });
  await bed.guest(`write -P 1 ${MiB} 1M`);
  const [unnamed = ''] = await bed.layers();
  await bed.snapshot(unnamed, 'B');
  await bed.guest(`write -P 2 ${2 * MiB} 1M`);
  await bed.execute('x-point-create', { name: 'p2' });
  await bed.guest(`write -P 3 ${3 * MiB} 1M`);
  const [top = ''] = await bed.layers();
  for (const [asked, told] of [
    [{}, /either 'name' or 'image'/],
    [{ name: 'p1', image: unnamed }, /either 'name' or 'image'/],
    [{ image: top }, /is what the disk shows now/],
    [{ image: 'none' }, /no disk has the image 'none'/],
    [{ image: unnamed }, /the guest is running/],
  ] as const)
    assert.match(await bed.refusal('x-point-revert', asked), told);
  await bed.execute('stop');
  await bed.execute('system_reset');
  const { plan } = await bed.engine.execute('x-point-revert', { image: unnamed, 'dry-run': true });
  assert.match(plan.words.join(' '), /Later points are no more: 'p2'/);
  assert.deepEqual(plan.ends, [bed.path('B.qcow2'), bed.path('A.after-p2.qcow2')]);
  await bed.execute('x-point-revert', { image: unnamed });
  assert.deepEqual(await points(bed), ['p1 usable A.qcow2']);
  await expectGuest(bed, 1, 3);
  await bed.execute('cont');
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.equal(await deleted(bed, 'p1'), undefined);
  await expectGuest(bed, 1, 3);
});

test('of an image below two disks it is said which goes back', async (t) => {
  const bed = new EngineBed(t);
  await bed.image('A');
  for (const name of ['B', 'C']) {
    const options = { sizeBytes: 8 * MiB, backingFile: bed.path('A.qcow2'), backingFormat: 'qcow2' };
    await createImage(bed.engine.opener, bed.path(`${name}.qcow2`), 'qcow2', options);
    const file = { driver: 'file', filename: bed.path(`${name}.qcow2`) };
    await bed.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, file, backing: 'A' });
  }
  assert.match(await bed.refusal('x-point-revert', { image: 'A' }), /'A' is below 2 disks: say which/);
  const made = await bed.engine.execute('x-point-revert', { image: 'A', disks: [{ node: 'C' }] });
  assert.equal(made.images[0]?.file, bed.path('C.after-A.qcow2'));
  assert.ok(bed.engine.graph.nodes.has('B') && !bed.engine.graph.nodes.has('C'));
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
  // p1's image is taken in by the one above it.
  await bed.execute('block-stream', { 'job-id': 's', device: first });
  await ended('s');
  assert.deepEqual((await points(bed)).slice(0, 2), ['p1 lost -', 'p2 usable A.after-p1.qcow2']);
  const lost = (await list(bed)).disks[0]?.points[0];
  assert.match(lost?.why ?? '', /'A\.qcow2' is not in the chain any more/);
  // A lost one's name can be forgotten, and is free again.
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.equal(await deleted(bed, 'p1'), undefined);
  await bed.execute('x-point-create', { name: 'p1' });
  await expectGuest(bed, 4, 4);
});

test('an image that another program has written to holds no point any more', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 2);
  const file = bed.path('A.qcow2');
  const bytes = readFileSync(file);
  writeFileSync(file, bytes);
  utimesSync(file, new Date(), new Date(Date.now() + 5000));
  const [first] = (await list(bed)).disks[0]?.points ?? [];
  assert.deepEqual([first?.state, first?.why], ['lost', "'A.qcow2' was written to by another program"]);
  assert.match(await bed.refusal('x-point-revert', { name: 'p1' }), /is lost/);
});

test('images and the folder may be renamed while nobody has them open', async (t) => {
  const old = new EngineBed(t);
  await diskWithPoints(old, 2);
  const [top] = (await list(old)).disks;
  await old.engine.close();
  const bed = new EngineBed(t);
  const folder = bed.path('moved');
  renameSync(old.folder, folder);
  renameSync(join(folder, 'A.qcow2'), join(folder, 'base.qcow2'));
  renameSync(join(folder, basename(top?.file ?? '')), join(folder, 'disk.qcow2'));
  const image = (name: string, more = {}): JsonObject => ({
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', filename: join(folder, `${name}.qcow2`) },
    ...more,
  });
  await bed.execute('blockdev-add', image('base'));
  const middle = { ...image('middle'), file: { driver: 'file', filename: join(folder, 'A.after-p1.qcow2') } };
  await bed.execute('blockdev-add', { ...middle, backing: 'base' });
  await bed.execute('blockdev-add', image('disk', { backing: 'middle' }));
  assert.deepEqual(await points(bed), ['p1 usable base.qcow2', 'p2 usable A.after-p1.qcow2']);
});

/** Of somebody else, on a disk with three points: each has its filter, or none, at another place of the chain. */
const OTHER_JOBS: Readonly<Record<string, (layers: readonly string[]) => [string, JsonObject]>> = {
  backup: ([device = '']) => ['blockdev-backup', { device, target: 'copy', sync: 'full' }],
  mirror: ([device = '']) => ['blockdev-mirror', { device, target: 'copy', sync: 'full' }],
  'commit of the active image': ([device = '', third = '']) => [
    'block-commit',
    { device, 'base-node': third },
  ],
  'commit of another': ([device = '', third = '', second = '']) => [
    'block-commit',
    { device, 'top-node': third, 'base-node': second },
  ],
  stream: ([, third = '', , first = '']) => ['block-stream', { device: third, 'base-node': first }],
};

for (const [name, jobOf] of Object.entries(OTHER_JOBS))
  test(`a deletion waits for a ${name} of others, goes on without its client, and is told once`, async (t) => {
    const bed = new EngineBed(t);
    await diskWithPoints(bed, 3);
    const layers = await bed.layers();
    const [, , second = ''] = layers;
    await bed.image('copy');
    const [command, args] = jobOf(layers);
    await bed.execute(command, { ...args, 'job-id': 'b', speed: 1024 });
    assert.match((await points(bed)).join(), /^p1 usable/);
    const asked = await bed.engine.execute('x-point-delete', { name: 'p1' });
    const again = await bed.engine.execute('x-point-delete', { name: 'p1' });
    assert.equal(asked.id, again.id);
    assert.deepEqual((await list(bed)).queue, ['p1']);
    assert.match((await points(bed)).join(), /p1 deleting/);
    assert.ok(bed.engine.graph.nodes.has(second));
    await bed.execute('block-job-cancel', { device: 'b', force: true });
    assert.equal(await deleted(bed, 'p1'), undefined);
    assert.deepEqual((await list(bed)).queue, []);
    assert.doesNotMatch((await points(bed)).join(), /p1/);
    await expectGuest(bed, 3, 3);
    assert.equal(bed.events.filter(({ event }) => event === 'x-point-deleted').length, 1);
  });

test('a deletion whose job fails is told, and goes on when it is asked for again', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.execute('x-point-create', { name: 'p1' });
  await bed.guest('write -P 1 1M 1M');
  const stop = bed.engine.onEvent((event, data) => {
    if (event !== 'JOB_STATUS_CHANGE' || data['status'] !== 'created') return;
    stop();
    void bed.engine.jobs.find(data['id'] as string)?.cancelNow();
  });
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.match(String(await deleted(bed, 'p1')), /Operation canceled/);
  const [found] = (await list(bed)).disks[0]?.points ?? [];
  assert.equal(found?.state, 'deleting');
  assert.match(found.why ?? '', /Operation canceled/);
  await bed.execute('x-point-delete', { name: 'p1' });
  assert.equal(await deleted(bed, 'p1', 2), undefined);
  assert.deepEqual(await points(bed), []);
});

test('a points file that cannot be written refuses, and nothing has changed; a damaged one is told', async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  mkdirSync(bed.path('A.points'));
  // What lies there is no file of ours: the disk's is called otherwise.
  await bed.execute('x-point-create', { name: 'p1' });
  const { disks } = await list(bed);
  assert.equal(disks[0]?.['points-file'], bed.path('A-2.points'));
  await bed.guest('flush');
  writeFileSync(bed.path('A-2.points'), Buffer.alloc(3 * MiB, 'livedisk-points 1 9999999 '));
  assert.deepEqual(await points(bed), []);
  assert.match(await bed.refusal('x-point-create', { name: 'p2' }), /is no points file, or is damaged/);
  assert.equal((await bed.layers()).length, 2);
});

/** A guest agent, in another's place; answers what it was asked. `refused`: what it does not do. */
async function guestAgent(
  t: TestContext,
  path: string,
  refused: readonly string[],
  whenFrozen?: () => void,
  isFrozen = false,
): Promise<string[]> {
  rmSync(path, { force: true });
  const asked: string[] = [];
  const server = createServer((socket) => {
    socket.on('data', (chunk: Buffer) => {
      for (const line of chunk.toString('latin1').replaceAll('\xff', '').split('\n').filter(Boolean)) {
        const { execute, arguments: args } = JSON.parse(line) as {
          execute: string;
          arguments?: { id: number };
        };
        if (args === undefined) asked.push(execute);
        const isRefused = refused.includes(execute);
        if (execute === 'guest-fsfreeze-freeze') whenFrozen?.();
        if (/freeze-(freeze|thaw)$/.test(execute) && !isRefused) isFrozen = execute.endsWith('freeze');
        const status = isFrozen ? 'frozen' : 'thawed';
        const value = args?.id ?? (execute === 'guest-fsfreeze-status' ? status : 1);
        const answer = isRefused ? { error: { desc: 'no' } } : { return: value };
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
  assert.deepEqual(asked, ['guest-fsfreeze-status', 'guest-fsfreeze-freeze', 'guest-fsfreeze-thaw']);

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

/** A disk as it is left where livedisk dies while it has the guest frozen by the agent at `agent`. */
async function leftFrozen(t: TestContext, agent: string): Promise<EngineBed> {
  const before = new EngineBed(t);
  await diskWithPoints(before, 1);
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-left-'));
  const asked = await guestAgent(t, agent, [], () => cpSync(before.folder, folder, { recursive: true }));
  await before.execute('x-point-create', { name: 'died', quiesce: agent });
  asked.length = 0;
  const bed = new EngineBed(t, { folder });
  t.after(async () => {
    await bed.engine.close();
    rmSync(folder, { recursive: true });
  });
  const filename = bed.path('A.after-p1.qcow2');
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file: { driver: 'file', filename } });
  await bed.device('A');
  return bed;
}

test('a guest that stayed frozen when livedisk died is thawed by the next one, and others are not', async (t) => {
  const path = join(mkdtempSync(join(tmpdir(), 'livedisk-agent-')), 'agent');
  t.after(() => rmSync(dirname(path), { recursive: true }));
  const bed = await leftFrozen(t, path);
  const asked = await guestAgent(t, path, [], undefined, true);
  assert.equal((await bed.engine.execute('x-point-create', { name: 'p2', quiesce: path })).quiesced, true);
  const verbs = ['status', 'thaw', 'freeze', 'thaw'];
  assert.deepEqual(
    asked,
    verbs.map((verb) => `guest-fsfreeze-${verb}`),
  );
  await guestAgent(t, path, [], undefined, true);
  const refusal = (name: string): Promise<string> => bed.refusal('x-point-create', { name, quiesce: path });
  assert.match(await refusal('p3'), /are frozen already, by another program/);
  assert.match(await refusal('p3'), /are frozen already, by another program/);
  assert.deepEqual(await points(bed), ['p1 usable A.qcow2', 'p2 usable A.after-p1.qcow2']);
});

test('a guest that could not be thawed is thawed when the next point is made so', async (t) => {
  const bed = new EngineBed(t);
  await diskWithPoints(bed, 1);
  const path = bed.path('agent');
  const first = await guestAgent(t, path, ['guest-fsfreeze-thaw']);
  assert.match(await bed.refusal('x-point-create', { name: 'p2', quiesce: path }), /may be frozen still/);
  assert.deepEqual(first.slice(1, 3), ['guest-fsfreeze-freeze', 'guest-fsfreeze-thaw']);
  const asked = await guestAgent(t, path, [], undefined, true);
  assert.equal((await bed.engine.execute('x-point-create', { name: 'p3', quiesce: path })).quiesced, true);
  assert.equal(asked[1], 'guest-fsfreeze-thaw');
});

test('a guest that another froze stays so where a point of several disks was refused before its freeze', async (t) => {
  const bed = new EngineBed(t);
  for (const name of ['A', 'B']) await bed.image(name);
  await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: bed.path('nbd') } } });
  for (const name of ['A', 'B'])
    await bed.execute('block-export-add', { type: 'nbd', id: name, 'node-name': name, writable: true });
  await bed.execute('x-point-create', { name: 'p1' });
  const path = bed.path('agent');
  const verb = await PointVerb.begin(createRealHost(), bed.path('B.points'));
  const asked = await guestAgent(t, path, []);
  assert.match(
    await bed.refusal('x-point-create', { name: 'p2', quiesce: path }),
    /another program is making/,
  );
  await verb.end();
  assert.deepEqual(asked, []);
  const others = await guestAgent(t, path, [], undefined, true);
  assert.match(await bed.refusal('x-point-create', { name: 'p2', quiesce: path }), /frozen already/);
  assert.deepEqual(others, ['guest-fsfreeze-status']);
  assert.deepEqual(await points(bed, 'A'), ['p1 usable A.qcow2']);
});
