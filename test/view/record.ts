// Writes test/view/answers/: what real servers answer in the situations that the pictures are tested with.
//   node --import tsx test/view/record.ts [SERVER...]      needs QEMU's programs
import { spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { QUERIES } from '../../src/view/answers.js';
import { livediskWords, PROJECT } from '../kit/program.js';
import { Daemon, run, scratch } from '../peers/daemon.js';

type Options = { [key: string]: unknown };

const FOLDER = join(import.meta.dirname, 'answers');
/** No job ends while it is looked at. */
const SLOW = { speed: 65536, 'auto-finalize': false };

const file = (filename: string): Options => ({ driver: 'file', filename });
const qcow2 = (name: string, more: Options = {}): Options => ({
  driver: 'qcow2',
  'node-name': name,
  file: file(`${name}.qcow2`),
  ...more,
});

/** What is done to a server that has the chain A <-- B <-- C <-- D; what cannot be done there leaves no recording. */
const SITUATIONS: Readonly<Record<string, (daemon: Daemon) => Promise<void>>> = {
  chain: async (daemon) => {
    await daemon.execute('block-dirty-bitmap-add', { node: 'D', name: 'b0', granularity: 65536 });
  },
  stream: async (daemon) => {
    await daemon.execute('block-stream', { 'job-id': 's', device: 'D', 'base-node': 'B', ...SLOW });
  },
  commit: async (daemon) => {
    await daemon.execute('block-commit', { 'job-id': 'c', device: 'D', 'base-node': 'B', ...SLOW });
  },
  'commit-below': async (daemon) => {
    const nodes = { 'top-node': 'C', 'base-node': 'A' };
    await daemon.execute('block-commit', { 'job-id': 'c', device: 'D', ...nodes, ...SLOW });
  },
  mirror: async (daemon) => {
    await daemon.execute('blockdev-add', qcow2('E'));
    await daemon.execute('blockdev-mirror', {
      'job-id': 'm',
      device: 'D',
      target: 'E',
      sync: 'full',
      ...SLOW,
    });
  },
  backup: async (daemon) => {
    await daemon.execute('blockdev-add', qcow2('E'));
    await daemon.execute('blockdev-backup', {
      'job-id': 'b',
      device: 'D',
      target: 'E',
      sync: 'full',
      ...SLOW,
    });
  },
  graph: async (daemon) => {
    // A second disk on the same base, behind limits.
    await daemon.execute('blockdev-add', qcow2('E', { backing: 'A' }));
    await daemon.execute('object-add', {
      'qom-type': 'throttle-group',
      id: 'g',
      limits: { 'iops-total': 50 },
    });
    await daemon.execute('blockdev-add', {
      driver: 'throttle',
      'node-name': 'T',
      'throttle-group': 'g',
      file: 'E',
    });
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data: { path: 'nbd.sock' } } });
    await daemon.execute('block-export-add', { type: 'nbd', id: 'e1', 'node-name': 'T' });
    await daemon.execute('block-export-add', { type: 'nbd', id: 'e2', 'node-name': 'D' });
  },
  quorum: async (daemon) => {
    const raw = (name: string): Options => ({ driver: 'raw', 'node-name': name, file: file(`${name}.raw`) });
    const children = [raw('q1'), raw('q2'), raw('q3')];
    await daemon.execute('blockdev-add', {
      driver: 'quorum',
      'node-name': 'Q',
      'vote-threshold': 2,
      children,
    });
  },
};

const chainOf = (add: (node: Options) => string[]): string[] =>
  ['A', 'B', 'C', 'D'].flatMap((name, i, all) => add(qcow2(name, i === 0 ? {} : { backing: all[i - 1] })));
const blockdev = chainOf((node) => ['--blockdev', JSON.stringify(node)]);
const DEVICE = ['-device', 'virtio-blk-pci,drive=D,id=virtio0'];
const QMP = ['-qmp', 'unix:qmp.sock,server=on,wait=off'];
const CONTROL = ['--chardev', 'socket,id=c,path=qmp.sock,server=on,wait=off', '--monitor', 'chardev=c'];

const SERVERS: Readonly<Record<string, string[]>> = {
  qemu: [
    'qemu-system-x86_64',
    '-nodefaults',
    '-display',
    'none',
    '-S',
    '-accel',
    'tcg',
    ...blockdev,
    ...DEVICE,
    ...QMP,
  ],
  'storage-daemon': ['qemu-storage-daemon', ...blockdev, ...CONTROL],
  livedisk: [process.execPath, ...livediskWords('run', ...blockdev, ...DEVICE, ...QMP)],
};

function prepare(folder: string): void {
  for (const [i, name] of ['A', 'B', 'C', 'D', 'E'].entries()) {
    const below =
      i === 0 || name === 'E' ? (name === 'E' ? [] : []) : ['-b', `${'ABCD'[i - 1]}.qcow2`, '-F', 'qcow2'];
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...below, `${name}.qcow2`, '8M');
    if (name !== 'E') run(folder, 'qemu-io', '-c', `write -P ${i + 1} ${i}M ${4 - i}M`, `${name}.qcow2`);
  }
  for (const name of ['q1', 'q2', 'q3'])
    run(folder, 'qemu-img', 'create', '-q', '-f', 'raw', `${name}.raw`, '1M');
}

async function record(context: TestContext, server: string, situation: string): Promise<void> {
  const folder = scratch(context);
  prepare(folder);
  const words = (SERVERS[server] ?? []).map((word) => word);
  // tsx is found from the project's folder only.
  const argv = server === 'livedisk' ? ['env', '-C', folder, ...atHome(words)] : words;
  const daemon = await Daemon.start(context, folder, argv);
  try {
    await SITUATIONS[situation]?.(daemon);
  } catch (error) {
    console.log(`${server} ${situation}: ${(error as Error).message}`);
    return;
  }
  const answers: Options = {};
  for (const { command, args } of QUERIES) {
    const answer = await daemon.raw(command, args);
    if (answer.error === undefined) answers[command] = answer.return;
  }
  mkdirSync(FOLDER, { recursive: true });
  writeFileSync(join(FOLDER, `${server}-${situation}.json`), `${JSON.stringify(answers, undefined, 1)}\n`);
  await daemon.kill();
}

function atHome(words: string[]): string[] {
  return words.map((word) => (word === 'tsx' ? join(PROJECT, 'node_modules/tsx/dist/loader.mjs') : word));
}

const asked = process.argv.slice(2);
for (const server of Object.keys(SERVERS)) {
  if (asked.length > 0 && !asked.includes(server)) continue;
  for (const situation of Object.keys(SITUATIONS)) {
    const last: Array<() => unknown> = [];
    const context = { after: (body: () => unknown) => void last.unshift(body) } as unknown as TestContext;
    try {
      await record(context, server, situation);
    } finally {
      for (const body of last) await body();
    }
  }
}
spawnSync('true');
