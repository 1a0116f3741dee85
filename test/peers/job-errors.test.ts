import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawn } from '../kit/amount.js';
import { Daemon, PROGRAM, run, scratch, skipWithout } from './daemon.js';

/**
 * Every error policy, of every job, for errors of both sides, met twice in a row: events, io-status and end are those
 * of QEMU. Disks are so small that a job makes one request; of mirrors another one when they are READY.
 */

type Json = { [key: string]: unknown };

const POLICIES = ['report', 'ignore', 'stop', 'enospc', 'auto'] as const;
const ERRNOS = { EIO: 5, ENOSPC: 28 } as const;
const DISK = '128k';

interface Job {
  name: string;
  command: string;
  args: Json;
  /** The node that is read, and the one that is written, and the argument that says what follows its errors. */
  sides: ReadonlyArray<readonly [node: 'top' | 'base' | 'target', event: string, policy: string]>;
  /** It has to be told to end. */
  isMirror?: boolean;
}

const READ = 'read_aio';
const WRITE = 'write_aio';

/** top over base, both with data, and a target. */
const JOBS: readonly Job[] = [
  {
    name: 'stream',
    command: 'block-stream',
    args: { device: 'top' },
    sides: [
      ['base', READ, 'on-error'],
      ['top', WRITE, 'on-error'],
    ],
  },
  {
    name: 'commit',
    command: 'block-commit',
    args: { device: 'over', 'top-node': 'top', 'base-node': 'base' },
    sides: [
      ['top', READ, 'on-error'],
      ['base', WRITE, 'on-error'],
    ],
  },
  {
    name: 'active commit',
    command: 'block-commit',
    args: { device: 'top', 'base-node': 'base' },
    sides: [
      ['top', READ, 'on-error'],
      ['base', WRITE, 'on-error'],
    ],
    isMirror: true,
  },
  {
    name: 'mirror',
    command: 'blockdev-mirror',
    args: { device: 'top', target: 'target', sync: 'full' },
    sides: [
      ['top', READ, 'on-source-error'],
      ['target', WRITE, 'on-target-error'],
    ],
    isMirror: true,
  },
  {
    name: 'backup',
    command: 'blockdev-backup',
    args: { device: 'top', target: 'target', sync: 'full' },
    sides: [
      ['top', READ, 'on-source-error'],
      ['target', WRITE, 'on-target-error'],
    ],
  },
];

interface Case {
  job: Job;
  side: Job['sides'][number];
  /** When the faults begin: at the first request, or at the one that a guest's write brings. */
  phase: 'copying' | 'ready';
  policy: (typeof POLICIES)[number];
  errno: keyof typeof ERRNOS;
}

function cases(): Case[] {
  const found: Case[] = [];
  for (const job of JOBS)
    for (const side of job.sides)
      for (const phase of job.isMirror === true ? (['copying', 'ready'] as const) : (['copying'] as const))
        for (const policy of POLICIES)
          for (const errno of Object.keys(ERRNOS) as Array<keyof typeof ERRNOS>)
            if (errno === 'EIO' || !['report', 'ignore'].includes(policy))
              found.push({ job, side, phase, policy, errno });
  return found;
}

/** Two requests of that kind fail, one after the other. */
function failing({ side: [node, event], phase, errno }: Case, name: string): Json {
  if (node !== name) return {};
  const before = phase === 'copying' ? [] : [1];
  const states = [before.length + 1, before.length + 2];
  return {
    'inject-error': states.map((state) => ({ event, state, errno: ERRNOS[errno], once: true })),
    'set-state': [...before, ...states].map((state) => ({ event, state, new_state: state + 1 })),
  };
}

async function outcome(daemon: Daemon, cwd: string, one: Case): Promise<Json> {
  const { job, side, phase, policy } = one;
  const image = (name: string, ...more: string[]): string =>
    run(cwd, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...more, name, ...(more.length > 0 ? [] : [DISK]));
  image('base');
  run(cwd, 'qemu-io', '-c', 'write -P 1 0 64k', 'base');
  image('top', '-b', 'base', '-F', 'qcow2');
  if (job.name !== 'stream') run(cwd, 'qemu-io', '-c', 'write -P 2 0 64k', 'top');
  image('over', '-b', 'top', '-F', 'qcow2');
  image('target');
  for (const [name, backing] of [
    ['base', null],
    ['top', 'base'],
    ['over', 'top'],
    ['target', null],
  ] as const) {
    if (name === 'over' && job.name !== 'commit') continue;
    const file = { driver: 'file', filename: name };
    const faults = failing(one, name);
    await daemon.execute('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': name, backing },
      file: { driver: 'blkdebug', image: file, ...faults },
    });
  }
  daemon.events.splice(0);
  await daemon.execute(job.command, { ...job.args, 'job-id': 'j', [side[2]]: policy, 'auto-dismiss': false });
  const stops: unknown[] = [];
  const errors = (): unknown[] =>
    daemon.events
      .filter(({ event }) => event === 'BLOCK_JOB_ERROR')
      .map(({ data }) => [data?.['operation'], data?.['action']]);
  let isToWrite = phase === 'ready';
  let isCompleted = false;
  let query: Json = {};
  for (;;) {
    [query = {}] = (await daemon.execute('query-block-jobs')) as Json[];
    const { status, paused } = query;
    if (status === 'concluded') break;
    if (status === 'ready' && isToWrite) {
      isToWrite = false;
      const socket = { type: 'unix', data: { path: 'nbd.sock' } };
      await daemon.execute('nbd-server-start', { addr: socket });
      await daemon.execute('nbd-server-add', { device: 'top', writable: true });
      run(cwd, 'qemu-io', '-f', 'raw', '-c', 'write 64k 64k', 'nbd+unix:///top?socket=nbd.sock');
      await daemon.execute('nbd-server-stop');
    } else if (status === 'ready' && (phase === 'copying' || errors().length === 2)) {
      // It may have stopped in the meantime.
      if (!isCompleted) await daemon.raw('block-job-complete', { device: 'j' });
      isCompleted = true;
    } else if ((status === 'paused' || status === 'standby') && paused === true && stops.length < 4) {
      stops.push(query['io-status']);
      await daemon.execute('block-job-resume', { device: 'j' });
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  await daemon.execute('job-dismiss', { id: 'j' });
  for (const name of ['over', 'top', 'target', 'base'])
    await daemon.raw('blockdev-del', { 'node-name': name });
  return { errors: errors(), stops, error: query['error'] };
}

test('jobs follow their error policies as QEMU’s do, each fault twice in a row', async (t) => {
  if (skipWithout(t, 'qemu-storage-daemon', 'qemu-img', 'qemu-io')) return;
  const monitor = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];
  const [theirs, ours] = [scratch(t), scratch(t)];
  const qemu = await Daemon.start(t, theirs, ['qemu-storage-daemon', ...monitor]);
  const livedisk = await Daemon.start(t, ours, [process.execPath, PROGRAM, 'storage-daemon', ...monitor]);
  for (const one of drawn(cases())) {
    const { job, side, phase, policy, errno } = one;
    const what = `${job.name}, ${phase}, ${errno} of ${side[0]} (${side[1]}), ${policy}`;
    assert.deepEqual(await outcome(livedisk, ours, one), await outcome(qemu, theirs, one), what);
  }
});
