import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { createImage } from '../../src/block/create.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** Ten minutes: nobody waits for it. */
const NEVER_MS = 600_000;
const SOON = { timeout: 60_000 };

const JOBS = {
  mirror: ['blockdev-mirror', {}],
  'write-blocking mirror': ['blockdev-mirror', { 'copy-mode': 'write-blocking' }],
  backup: ['blockdev-backup', {}],
} as const;

/** A disk with data, and a target whose requests of one kind do not end. */
async function hung(
  bed: EngineBed,
  iotype: 'write' | 'write-zeroes' | 'flush' | 'block-status',
  content = ['write -P 1 0 2M'],
): Promise<void> {
  await bed.image('S');
  await bed.device('S');
  for (const command of content) await bed.guest(command);
  const filename = bed.path('T.raw');
  // Nothing in it is known to be zero.
  writeFileSync(filename, Buffer.alloc(DISK_BYTES, 0xff));
  const file = {
    driver: 'blkdebug',
    image: { driver: 'file', filename },
    'x-delay': [{ iotype, 'delay-ms': NEVER_MS }],
  };
  await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
}

async function startJob(bed: EngineBed, kind: keyof typeof JOBS): Promise<void> {
  const [command, more] = JOBS[kind];
  await bed.execute(command, { 'job-id': 'job', device: 'S', target: 'T', sync: 'full', ...more });
}

const hasRequests = (bed: EngineBed): boolean =>
  [...bed.engine.graph.node('T').parents].some(({ parent }) => 'hasRequests' in parent && parent.hasRequests);

const doneBytes = (bed: EngineBed): number =>
  bed.engine.jobs.list().reduce((sum, job) => sum + job.progress().doneBytes, 0);

/** A request is in flight to the target, and so much is copied. */
async function untilHung(bed: EngineBed, afterBytes = 0): Promise<void> {
  while (!hasRequests(bed) || doneBytes(bed) < afterBytes)
    await new Promise((resolve) => setImmediate(resolve));
}

/** Units of a copy that hold data and zeroes: the file has the pages of 512 bytes that were written to each. */
const MIXED = Array.from({ length: 32 }, (_, i) => `write -P 1 ${i * 64 + 8}k 512`);

for (const kind of ['mirror', 'backup'] as const)
  for (const iotype of ['write', 'write-zeroes'] as const)
    test(
      `${kind}: units of data and zeroes, of which a hung target lacks a ${iotype}, do not hold up stop`,
      SOON,
      async (t) => {
        const bed = new EngineBed(t);
        await hung(bed, iotype, MIXED);
        await startJob(bed, kind);
        await untilHung(bed);
        await bed.execute('stop');
        await bed.execute('cont');
        await bed.execute('block-job-cancel', { device: 'job', force: true });
        await bed.event('BLOCK_JOB_CANCELLED', 'job');
      },
    );

for (const kind of Object.keys(JOBS) as Array<keyof typeof JOBS>) {
  test(
    `${kind}: a hung target holds up neither a snapshot of the source nor stop, and the job ends by force`,
    SOON,
    async (t) => {
      const bed = new EngineBed(t);
      await hung(bed, 'write');
      await startJob(bed, kind);
      await untilHung(bed);
      // A mirror does not let its source be snapshotted.
      if (kind === 'backup')
        await bed.execute('blockdev-snapshot-sync', {
          ...{ 'node-name': 'S', 'snapshot-file': bed.path('O.qcow2'), 'snapshot-node-name': 'O' },
        });
      await bed.execute('stop');
      await bed.execute('cont');
      if (kind === 'mirror') await bed.guest('write -P 2 0 64k');
      await bed.execute('block-job-cancel', { device: 'job', force: true });
      await bed.event('BLOCK_JOB_CANCELLED', 'job');
      await bed.guest('write -P 3 1M 64k');
      await bed.execute('blockdev-del', { 'node-name': 'T' });
    },
  );

  test(`${kind}: the program ends while the target hangs`, SOON, async (t) => {
    const bed = new EngineBed(t);
    await hung(bed, 'write');
    await startJob(bed, kind);
    await untilHung(bed);
    await bed.engine.close();
    assert.equal(bed.engine.graph.nodes.size, 0);
  });
}

test(
  'a write of the guest that waits for a hung target goes on when the job is cancelled',
  SOON,
  async (t) => {
    for (const kind of ['write-blocking mirror', 'backup'] as const) {
      const bed = new EngineBed(t);
      await hung(bed, 'write');
      await startJob(bed, kind);
      await untilHung(bed);
      const [device] = bed.engine.devices.values();
      assert.ok(device);
      const written = device.backend.write(0, Buffer.alloc(65536, 2));
      await bed.execute('block-job-cancel', { device: 'job', force: true });
      await written;
      await bed.event('BLOCK_JOB_CANCELLED', 'job');
      await bed.guest('read -P 2 0 64k');
    }
  },
);

test(
  'a target that hangs when it is flushed goes all the same, of the last job and by itself',
  SOON,
  async (t) => {
    const bed = new EngineBed(t);
    await hung(bed, 'flush');
    await bed.execute('blockdev-backup', { 'job-id': 'job', device: 'S', target: 'T', sync: 'none' });
    await bed.guest('write -P 2 64k 64k');
    await bed.execute('job-cancel', { id: 'job' });
    await bed.event('BLOCK_JOB_CANCELLED', 'job');
    await bed.execute('blockdev-del', { 'node-name': 'T' });
    assert.equal(bed.engine.graph.nodes.has('T'), false);
    await bed.guest('read -P 1 0 64k');
  },
);

test('a soft cancel is answered while a piece hangs, and force ends the job then', SOON, async (t) => {
  const bed = new EngineBed(t);
  await hung(bed, 'write');
  await bed.execute('blockdev-mirror', { 'job-id': 'job', device: 'S', target: 'T', sync: 'none' });
  await bed.event('BLOCK_JOB_READY', 'job');
  await bed.guest('write -P 2 0 64k');
  await untilHung(bed);
  await bed.execute('block-job-cancel', { device: 'job' });
  await bed.guest('write -P 3 64k 64k');
  await bed.execute('block-job-cancel', { device: 'job', force: true });
  await bed.event('BLOCK_JOB_CANCELLED', 'job');
});

for (const [iotype, afterBytes] of [
  ['write', 0],
  ['block-status', 2 * MiB],
  ['flush', DISK_BYTES],
] as const)
  test(
    `a hung target that others use too: a job ends by force when its ${iotype} hangs, and leaves the node theirs`,
    SOON,
    async (t) => {
      const bed = new EngineBed(t);
      await hung(bed, iotype);
      const socket = { type: 'unix', data: { path: bed.path('nbd.sock') } };
      await bed.execute('nbd-server-start', { addr: socket });
      await startJob(bed, 'backup');
      await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T' });
      await untilHung(bed, afterBytes);
      const [device] = bed.engine.devices.values();
      assert.ok(device);
      const written = device.backend.write(MiB, Buffer.alloc(65536, 2));
      const started = Date.now();
      await bed.execute('block-job-cancel', { device: 'job', force: true });
      await bed.event('BLOCK_JOB_CANCELLED', 'job');
      await written;
      assert.ok(Date.now() - started < 20_000);
      // What the job asked for may still come to be: until then it is known as a writer.
      const graph = bed.engine.graph;
      const target = graph.node('T');
      const writers = [...target.parents].filter((edge) => edge.isWritable);
      assert.equal(writers.length, 1);
      // Theirs still: it answers.
      await target.io.readBuffer(DISK_BYTES - 4096, Buffer.alloc(4096));
      await bed.execute('block-export-del', { id: 'e' });
      // Nobody else uses it now: it is given up altogether.
      while (target.parents.size > 0) await new Promise((resolve) => setTimeout(resolve, 20));
      await bed.execute('blockdev-del', { 'node-name': 'T' });
      assert.equal(graph.nodes.has('T'), false);
      await bed.guest(`read -P 2 1M 64k`);
    },
  );

test('what others use is not given up with a job', SOON, async (t) => {
  const bed = new EngineBed(t, { kind: 'storage-daemon' });
  await bed.image('S');
  await bed.image('T');
  const socket = { type: 'unix', data: { path: bed.path('nbd.sock') } };
  await bed.execute('nbd-server-start', { addr: socket });
  await bed.execute('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'T' });
  await startJob(bed, 'backup');
  bed.engine.graph.cancelInFlight(bed.engine.graph.node('T'));
  const bytes = Buffer.alloc(MiB);
  await bed.engine.graph.node('T').io.readBuffer(0, bytes);
});

/** A disk of another guest's device, where a write waits until it is told to go on. */
async function heldDisk(bed: EngineBed): Promise<{ release: () => Promise<void> }> {
  const filename = bed.path('H.qcow2');
  await createImage(bed.engine.opener, filename, 'qcow2', { sizeBytes: DISK_BYTES });
  const image = { driver: 'file', filename };
  await bed.engine.addNode({ driver: 'qcow2', 'node-name': 'H', file: { driver: 'blkdebug', image } });
  const device = await bed.engine.addDevice('H', { id: 'held' });
  const qemuIo = (command: string): Promise<unknown> =>
    bed.execute('human-monitor-command', { 'command-line': `qemu-io -d held "${command}"` });
  await qemuIo('break write_aio held');
  const written = device.backend.write(0, Buffer.alloc(65536, 1));
  await qemuIo('wait_break held');
  return {
    async release() {
      await qemuIo('resume held');
      await written;
    },
  };
}

test("a guest's disk that hangs holds up no snapshot, backup or transaction of another", SOON, async (t) => {
  const bed = new EngineBed(t);
  await bed.chain('A');
  await bed.image('T');
  const { release } = await heldDisk(bed);
  await bed.snapshot('A', 'B');
  const overlay = { 'snapshot-file': bed.path('C.qcow2'), 'snapshot-node-name': 'C' };
  const actions = [
    { type: 'blockdev-snapshot-sync', data: { 'node-name': 'B', ...overlay } },
    { type: 'block-dirty-bitmap-add', data: { node: 'B', name: 'b' } },
  ];
  await bed.execute('transaction', { actions });
  await bed.execute('blockdev-backup', { 'job-id': 'job', device: 'C', target: 'T', sync: 'full' });
  await bed.event('BLOCK_JOB_COMPLETED', 'job');
  await bed.guest('write -P 3 1M 64k');
  assert.match(await bed.refusal('blockdev-snapshot-sync', { 'node-name': 'C', ...overlay }), /in use/);
  await release();
});
