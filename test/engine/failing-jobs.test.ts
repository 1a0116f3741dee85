import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { test, type TestContext } from 'node:test';
import { Node } from '../../src/block/node.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { createRealHost } from '../../src/host/real.js';
import type { JobPhase } from '../../src/jobs/job-progress.js';
import type { JsonObject } from '../../src/schema/types.js';
import { FaultyHost, type FaultyOperation } from '../kit/faulty-host.js';
import { DISK_BYTES, EngineBed, MiB } from './engine-bed.js';

/** What goes wrong, and where. */
type Cause =
  | { what: FaultyOperation; file: string; phase: JobPhase; errno: string }
  /** Somebody uses the node and lets nobody write. */
  | { what: 'conflict'; node: string }
  | { what: 'size'; node: string };

interface Case {
  name: string;
  command: string;
  args: JsonObject;
  causes: readonly Cause[];
  /** What shows the disk's content when the job is done. */
  result: string;
}

const fault = (what: FaultyOperation, file: string, phase: JobPhase, errno = 'EIO'): Cause => ({
  what,
  file: `${file}.qcow2`,
  phase,
  errno,
});

const COPY_FAULTS: readonly Cause[] = [
  { what: 'conflict', node: 'T' },
  { what: 'size', node: 'T' },
  fault('read', 'A', 'copying'),
  fault('read', 'C', 'copying'),
  fault('write', 'T', 'copying', 'ENOSPC'),
  fault('flush', 'T', 'flushing'),
];

/** When it flushes a last time, tables are written already. */
const MIRROR_FAULTS: readonly Cause[] = [...COPY_FAULTS, fault('flush', 'T', 'copying')];
const BACKUP_FAULTS: readonly Cause[] = [...COPY_FAULTS, fault('write', 'T', 'flushing')];

/** On A <-- B <-- C <-- D, the disk, with data in each, a target T, and a bitmap on D. */
const CASES: readonly Case[] = [
  {
    name: 'stream',
    command: 'block-stream',
    args: { device: 'D' },
    causes: [
      fault('read', 'A', 'copying'),
      fault('write', 'D', 'copying', 'ENOSPC'),
      fault('flush', 'D', 'flushing'),
      fault('write', 'D', 'flushing'),
      fault('write', 'D', 'ending'),
      fault('flush', 'D', 'ending'),
    ],
    result: 'D',
  },
  {
    name: 'stream into a layer below',
    command: 'block-stream',
    args: { device: 'C', 'base-node': 'A' },
    causes: [
      fault('open', 'C', 'starting', 'EACCES'),
      fault('read', 'B', 'copying'),
      fault('write', 'C', 'copying'),
      fault('write', 'C', 'ending'),
      fault('flush', 'C', 'ending'),
    ],
    result: 'D',
  },
  {
    name: 'commit',
    command: 'block-commit',
    args: { device: 'D', 'top-node': 'C', 'base-node': 'A' },
    causes: [
      { what: 'conflict', node: 'A' },
      fault('open', 'A', 'starting', 'EACCES'),
      fault('read', 'C', 'copying'),
      fault('write', 'A', 'copying', 'ENOSPC'),
      fault('flush', 'A', 'flushing'),
      fault('write', 'D', 'ending'),
      fault('flush', 'D', 'ending'),
    ],
    result: 'D',
  },
  {
    name: 'commit below a layer that is read-only',
    command: 'block-commit',
    args: { device: 'D', 'top-node': 'B', 'base-node': 'A' },
    causes: [
      fault('open', 'C', 'ending', 'EACCES'),
      fault('write', 'C', 'ending'),
      fault('flush', 'C', 'ending'),
    ],
    result: 'D',
  },
  {
    name: 'active commit',
    command: 'block-commit',
    args: { device: 'D', 'base-node': 'A' },
    causes: [
      { what: 'conflict', node: 'A' },
      fault('open', 'A', 'starting', 'EACCES'),
      fault('read', 'C', 'copying'),
      fault('read', 'D', 'copying'),
      fault('write', 'A', 'copying', 'ENOSPC'),
      fault('flush', 'A', 'flushing'),
    ],
    result: 'A',
  },
  {
    name: 'mirror',
    command: 'blockdev-mirror',
    args: { device: 'D', target: 'T', sync: 'full' },
    causes: MIRROR_FAULTS,
    result: 'T',
  },
  {
    name: 'mirror that writes to both sides',
    command: 'blockdev-mirror',
    args: { device: 'D', target: 'T', sync: 'full', 'copy-mode': 'write-blocking' },
    causes: MIRROR_FAULTS,
    result: 'T',
  },
  {
    name: 'backup',
    command: 'blockdev-backup',
    args: { device: 'D', target: 'T', sync: 'full' },
    causes: BACKUP_FAULTS,
    result: 'T',
  },
  {
    name: 'backup with a bitmap',
    command: 'blockdev-backup',
    args: { device: 'D', target: 'T', sync: 'full', bitmap: 'bits', 'bitmap-mode': 'on-success' },
    causes: BACKUP_FAULTS,
    result: 'T',
  },
];

/** All that a job may leave behind: in the graph, in its files' locks, in the lists of the engine. */
function shapeOf(bed: EngineBed): unknown {
  const { graph, jobs, exports } = bed.engine;
  const nodes = [...graph.nodes.values()].map((node) => ({
    name: node.name,
    parents: [...node.parents].map(({ parent, role, perm, shared, frozen }) => [
      ...[parent instanceof Node ? parent.name : parent.description, role, perm, shared, frozen],
    ]),
    state: [node.readOnly, node.isClosing, node.isBlocked, node.monitorOwned, node.quiesceCount, node.gate],
    bitmaps: node.dirtyBitmaps.map(({ name, busy, enabled, dirtyBytes, successor }) => [
      ...[name, busy, enabled, dirtyBytes, successor],
    ]),
    // Files grow with what they are given.
    length: node.children.size > 0 ? node.lengthBytes : undefined,
    backing: node.backingFilename,
  }));
  return {
    nodes: nodes.sort((a, b) => (a.name < b.name ? -1 : 1)),
    backends: [...graph.backends].map(({ description, quiesceCount }) => [description, quiesceCount]).sort(),
    jobs: jobs.list().map(({ id }) => id),
    exports: exports.list(),
    locks: locks(),
  };
}

/** Byte-range locks that this process holds. */
function locks(): string[] {
  return readdirSync('/proc/self/fdinfo')
    .flatMap((fd) => {
      try {
        return readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').split('\n');
      } catch {
        return [];
      }
    })
    .filter((line) => line.startsWith('lock:'))
    .map((line) => line.replace(/^lock:\s*\d+:\s*/, ''))
    .sort();
}

async function newBed(t: TestContext): Promise<{ bed: EngineBed; faulty: FaultyHost }> {
  const faulty = new FaultyHost(createRealHost());
  const bed = new EngineBed(t, { host: faulty.host });
  await bed.chain('A', 'B', 'C', 'D');
  await bed.image('T');
  await bed.execute('block-dirty-bitmap-add', { node: 'D', name: 'bits' });
  await bed.guest('write -P 0x77 7M 128k');
  return { bed, faulty };
}

/** Brings the cause about; answers what ends it. */
async function bringAbout(bed: EngineBed, faulty: FaultyHost, cause: Cause): Promise<() => Promise<void>> {
  const { graph, jobs } = bed.engine;
  if (cause.what === 'size') {
    await bed.execute('block_resize', { 'node-name': cause.node, size: DISK_BYTES + MiB });
    return async () => {
      await bed.execute('blockdev-del', { 'node-name': cause.node });
      await bed.image('T');
    };
  }
  if (cause.what === 'conflict') {
    const shared = ALL_PERMISSIONS - Permission.write - Permission.writeUnchanged;
    const user = graph.createBackend({ description: 'a user', perm: Permission.consistentRead, shared });
    await graph.transaction((change) => void change.attach(user, 'root', graph.node(cause.node)));
    return () => graph.transaction((change) => void (user.root && change.detach(user.root)));
  }
  const { what: op, file, errno, phase } = cause;
  const when = (): boolean => (jobs.find('j')?.progress().phase ?? 'starting') === phase;
  const hostFault = { op, file, errno, when };
  faulty.faults.add(hostFault);
  return async () => {
    faulty.faults.delete(hostFault);
    assert.ok((faulty.struck.get(hostFault) ?? 0) > 0, 'the fault has struck');
  };
}

/** Runs the command and its job to the end; answers how it failed. */
async function attempt(bed: EngineBed, { command, args }: Case): Promise<string | undefined> {
  try {
    await bed.execute(command, { ...args, 'job-id': 'j' });
  } catch (error) {
    return (error as Error).message;
  }
  const job = bed.engine.jobs.find('j');
  assert.ok(job, 'the job has begun');
  while (!job.isOver && !job.isReady) await bed.engine.host.clock.macrotask();
  if (job.isReady) job.complete();
  await job.concluded;
  return job.error;
}

/** What an image holds that it cannot make durable keeps it writable, until that can be done. */
function leavesWritable(cause: Cause): boolean {
  return (cause.what === 'flush' || cause.what === 'write') && cause.file === 'C.qcow2';
}

async function contents(node: Node): Promise<Buffer> {
  const bytes = Buffer.alloc(DISK_BYTES);
  await node.io.readBuffer(0, bytes);
  return bytes;
}

for (const subject of CASES) {
  for (const cause of subject.causes) {
    const what = Object.values(cause).join(' ');
    test(`${subject.name} that fails (${what}) leaves all as it was, and succeeds when tried again`, async (t) => {
      const { bed, faulty } = await newBed(t);
      const before = await contents(bed.engine.graph.node('D'));
      const end = await bringAbout(bed, faulty, cause);
      const shape = shapeOf(bed);
      for (const time of ['first', 'second']) {
        assert.notEqual(await attempt(bed, subject), undefined, `the ${time} time`);
        if (!leavesWritable(cause)) assert.deepEqual(shapeOf(bed), shape, `the ${time} time`);
      }
      await end();
      assert.equal(await attempt(bed, subject), undefined);
      if (leavesWritable(cause)) assert.equal(bed.engine.graph.node('C').readOnly, true);
      const result = await contents(bed.engine.graph.node(subject.result));
      assert.ok(result.equals(before), 'the content is that of the disk');
    });
  }
}
