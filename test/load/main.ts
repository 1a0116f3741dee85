import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { createRealHost } from '../../src/host/real.js';
import { QmpClient, type QmpEvent } from '../../src/wire/qmp/client.js';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { livedisk, livediskWords, PROJECT } from '../kit/program.js';
import { percentile, runLoad } from './load.js';

/** `npm run proof load`: the load of load.ts on the storage daemon, which is another process. */

const { values } = parseArgs({
  options: {
    rounds: { type: 'string', default: '1000' },
    seed: { type: 'string', default: '1' },
    folder: { type: 'string', default: '/dev/shm' },
    /** Another storage daemon that takes the same command line. */
    program: { type: 'string' },
  },
});

/** Ends of jobs, whoever waits for them first. */
class JobEnds {
  readonly #ended = new Map<string, string | undefined>();
  #wake: () => void = () => undefined;

  add({ event, data }: QmpEvent): void {
    if (event !== 'BLOCK_JOB_COMPLETED') return;
    this.#ended.set(data['device'] as string, data['error'] as string | undefined);
    this.#wake();
  }

  async of(jobId: string): Promise<void> {
    while (!this.#ended.has(jobId)) await new Promise<void>((resolve) => (this.#wake = resolve));
    const error = this.#ended.get(jobId);
    this.#ended.delete(jobId);
    if (error !== undefined) throw new Error(`${jobId}: ${error}`);
  }
}

async function main(): Promise<void> {
  const folder = mkdtempSync(join(values.folder, 'livedisk-load-'));
  const host = createRealHost();
  const blockdevs = ['disk0.0', 'disk1.0'].flatMap((name) => {
    livedisk('img', 'create', '-q', '-f', 'qcow2', join(folder, name), '64M');
    return ['--blockdev', `qcow2,node-name=${name},file.driver=file,file.filename=${join(folder, name)}`];
  });
  const [qmp, nbd] = [join(folder, 'qmp'), join(folder, 'nbd')];
  const args = [
    ...blockdevs,
    ...['--chardev', `socket,id=c,path=${qmp},server=on,wait=off`, '--monitor', 'chardev=c'],
    ...['--nbd-server', `addr.type=unix,addr.path=${nbd}`],
  ];
  const [program, words] = values.program
    ? [values.program, args]
    : [process.execPath, livediskWords('storage-daemon', ...args)];
  const daemon = spawn(program, words, { cwd: PROJECT, stdio: ['ignore', 'inherit', 'inherit'] });
  try {
    const monitor = await connect(() => QmpClient.connect(host, { type: 'unix', path: qmp }));
    const ends = new JobEnds();
    monitor.onEvent((event) => ends.add(event));
    const server = {
      ...{ host, folder, nbd: { type: 'unix', path: nbd } as const },
      execute: monitor.execute.bind(monitor),
      ended: (jobId: string) => ends.of(jobId),
    };
    const random = new SeededRandom(Number(values.seed));
    const { stalls, writes } = await runLoad(server, Number(values.rounds), (bound) => random.below(bound));
    for (const [what, times] of stalls) {
      const told = [50, 99, 100].map((part) => percentile(times, part).toFixed(1));
      console.log(
        `stall, ${what}: ${times.length} times, median ${told[0]} ms, p99 ${told[1]} ms, longest ${told[2]} ms`,
      );
    }
    const [snapshots, nothing] = ['snapshots of two disks', 'nothing'].map((what) =>
      Math.ceil(percentile(stalls.get(what) ?? [], 99)),
    );
    console.log(
      `${values.rounds} rounds passed, ${writes} writes, longest write of 99 % of snapshots ${snapshots} ms, without ${nothing} ms`,
    );
    monitor.close();
  } finally {
    daemon.kill();
    await new Promise((resolve) => (daemon.exitCode === null ? daemon.once('exit', resolve) : resolve(0)));
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The program needs a moment to start. */
async function connect<T>(attempt: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (tries === 200) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

await main();
