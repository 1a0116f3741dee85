import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { freemem } from 'node:os';
import { join } from 'node:path';
import { benchCompute } from './compute.js';
import { benchConvert } from './convert.js';
import { benchJobs } from './jobs.js';
import { benchLatency } from './latency.js';
import { benchLayers } from './layers.js';
import { describeMachine } from './machine.js';
import { benchMemory } from './memory.js';
import { benchMove } from './move.js';
import { benchNbd } from './nbd.js';
import { Peer } from './peer.js';
import { benchStart } from './start.js';

const HELP = `usage: npm run bench -- [start] [memory] [compute] [nbd] [jobs] [convert] [latency] [move] [layers] [OPTION]...

Runs livedisk and QEMU's programs in turn on the same work. Each row has the least, the median and the most of both
sides' runs, the processor's time (user and system, of the program and its children; in seconds, or of each request in
microseconds), and how much of a time went into
bringing to disk what was not there when the program was done. The ratios are those of the medians. A row whose machine
was not quiet before a run says so. Without a name: all.

  --rounds=N     runs of each side, 3 at least (default 3)
  --peer=FOLDER  QEMU's programs from a folder where a package was unpacked, not the system's
  --data=MIB     data in the disks of jobs and convert (default 512)
  --disk=FOLDER  where the disk runs keep their files (default /var/tmp); runs in memory use /dev/shm
  --only=TEXT    only the jobs whose pattern and name contain it, as in 'scattered: backup to raw', or such floods
  --no-disk      leave the disk runs out
  --cold         the images of jobs are not in the page cache at first (on disk)
  --runs         tell each run too, with what went to the disks meanwhile
`;

const SECTIONS = ['start', 'memory', 'compute', 'nbd', 'jobs', 'convert', 'latency', 'move', 'layers'];
const args = process.argv.slice(2);
const option = (name: string, byDefault: string): string =>
  args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3) ?? byDefault;

/** A disk that is larger than what the kernel lets be dirty, so that writers are held up. */
function beyondDirtyLimitMiB(): number {
  const ratio = Number(readFileSync('/proc/sys/vm/dirty_ratio', 'utf8'));
  const limitMiB = (ratio / 100) * (freemem() / 1024 / 1024);
  return Math.min(16 * 1024, Math.ceil((1.5 * limitMiB) / 1024) * 1024);
}

async function inFolder(parent: string, body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(parent, 'livedisk-bench-'));
  try {
    await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (args.includes('--help')) process.stdout.write(HELP);
else {
  const unknown = args.find((arg) => !arg.startsWith('--') && !SECTIONS.includes(arg));
  if (unknown !== undefined) throw new Error(`unknown section '${unknown}'\n${HELP}`);
  const named = args.filter((arg) => SECTIONS.includes(arg));
  const wants = (name: string): boolean => named.length === 0 || named.includes(name);
  const rounds = { count: Math.max(3, Number(option('rounds', '3'))), isEachTold: args.includes('--runs') };
  const isCold = args.includes('--cold');
  const peerFolder = option('peer', '');
  const peer = new Peer(peerFolder === '' ? undefined : peerFolder);
  process.stdout.write(`${describeMachine()}\nagainst ${peer.name()}\n`);
  const dataMiB = Number(option('data', '512'));
  const latencyMiB = Math.min(1024, 2 * dataMiB);
  const only = option('only', '');
  const places: Array<[string, string]> = [['in memory', '/dev/shm']];
  if (!args.includes('--no-disk')) places.push(['disk', option('disk', '/var/tmp')]);
  if (wants('start')) await benchStart(rounds.count);
  if (wants('memory')) await inFolder('/dev/shm', (folder) => benchMemory(peer, folder));
  if (wants('compute')) await benchCompute();
  if (wants('move')) await inFolder('/dev/shm', (folder) => benchMove('in memory', folder, rounds.count));
  if (wants('layers')) await inFolder('/dev/shm', (folder) => benchLayers(peer, folder));
  if (wants('nbd')) await inFolder('/dev/shm', (folder) => benchNbd(peer, folder, rounds));
  for (const [place, parent] of places) {
    if (wants('jobs'))
      await inFolder(parent, (folder) => benchJobs(peer, place, folder, dataMiB, { rounds, only, isCold }));
    if (wants('convert'))
      await inFolder(parent, (folder) => benchConvert(peer, place, folder, dataMiB, rounds));
    if (wants('latency'))
      await inFolder(parent, (folder) =>
        benchLatency(peer, place, folder, { diskMiB: latencyMiB, runSeconds: 8, rounds: rounds.count, only }),
      );
  }
  if (wants('latency') && !args.includes('--no-disk')) {
    const beyond = beyondDirtyLimitMiB();
    await inFolder(option('disk', '/var/tmp'), (folder) =>
      benchLatency(peer, "disk, past the kernel's dirty limit", folder, {
        diskMiB: beyond,
        runSeconds: 20,
        rounds: rounds.count,
        only: 'mirror',
      }),
    );
  }
}
