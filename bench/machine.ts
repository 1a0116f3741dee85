import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { join } from 'node:path';

/** Processors that others may keep busy before a run is said to be disturbed. */
const QUIET_CPUS = 0.2;
/** Data of others that waits to be written: it competes with a run on disk. */
const QUIET_DIRTY_MIB = 256;
const SAMPLE_MS = 200;
/** Ticks of /proc/stat and /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

/** MiB that all disks have been given to write, of /proc/diskstats; partitions are not counted twice. */
export function writtenMiB(): number {
  let sectors = 0;
  for (const line of readFileSync('/proc/diskstats', 'utf8').split('\n')) {
    const [, , name = '', , , , , , , written] = line.trim().split(/\s+/);
    if (/^(vd[a-z]+|sd[a-z]+|xvd[a-z]+|nvme\d+n\d+|md\d+)$/.test(name)) sectors += Number(written);
  }
  return sectors / 2048;
}

/** What the machine was doing before a run. */
export interface Quiet {
  /** Processors' worth of work. */
  busyCpus: number;
  /** Dirty or under writeback in the page cache. */
  dirtyMiB: number;
}

function busyTicks(): number {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = readFileSync(
    '/proc/stat',
    'utf8',
  )
    .split('\n', 1)[0]!
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return user + nice + system + irq + softirq + steal;
}

function dirtyMiB(): number {
  const text = readFileSync('/proc/meminfo', 'utf8');
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(text)?.[1]);
  return (kib('Dirty') + kib('Writeback')) / 1024;
}

/** Looks for a moment at what others do. */
export async function lookAround(): Promise<Quiet> {
  const ticks = busyTicks();
  await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS));
  const busyCpus = (busyTicks() - ticks) / TICKS_PER_SECOND / (SAMPLE_MS / 1000);
  return { busyCpus, dirtyMiB: dirtyMiB() };
}

/** The worst of several, in words; empty when all were quiet. */
export function disturbance(looks: readonly Quiet[]): string {
  const busy = Math.max(...looks.map(({ busyCpus }) => busyCpus));
  const dirty = Math.max(...looks.map((look) => look.dirtyMiB));
  const found = [
    ...(busy > QUIET_CPUS ? [`${busy.toFixed(1)} CPUs busy`] : []),
    ...(dirty > QUIET_DIRTY_MIB ? [`${dirty.toFixed(0)} MiB dirty`] : []),
  ];
  return found.length === 0 ? '' : `NOT QUIET before a run: ${found.join(', ')}`;
}

/**
 * Uses so much memory for a moment, just before a run: a virtual machine gives memory that was freed back to its host,
 * and the next to use it waits for the host, three times as long as a copy of the same bytes takes.
 */
export function touchMemory(lengthBytes: number): void {
  const folder = mkdtempSync('/dev/shm/livedisk-bench-');
  try {
    const file = openSync(join(folder, 'touched'), 'w');
    const piece = Buffer.alloc(1024 * 1024);
    for (let done = 0; done < lengthBytes; done += piece.length) writeSync(file, piece);
    closeSync(file);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export function describeMachine(): string {
  const processors = cpus();
  const load = loadavg().map((value) => value.toFixed(2));
  return [
    `${processors.length} x ${processors[0]?.model ?? 'unknown processor'}`,
    `${(totalmem() / 2 ** 30).toFixed(0)} GiB memory, Linux ${release()}, Node.js ${process.version}`,
    `load ${load.join(' ')}, ${dirtyMiB().toFixed(0)} MiB dirty in the page cache`,
  ].join('\n');
}

/** Seconds of processor time, user and system, of a process, its threads and the children that it has waited for. */
export function cpuSecondsOf(pid: number | 'self'): number {
  const [utime, stime, cutime, cstime] = statTimes(pid);
  return utime + stime + cutime + cstime;
}

/** The same of children of this process that have ended, and of theirs. */
export function cpuSecondsOfEndedChildren(): number {
  const [, , cutime, cstime] = statTimes('self');
  return cutime + cstime;
}

/** proc(5), /proc/PID/stat: fields 14 to 17; the name before them may hold anything. */
function statTimes(pid: number | 'self'): [number, number, number, number] {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  const seconds = (field: number): number => Number(fields[field - 3]) / TICKS_PER_SECOND;
  return [seconds(14), seconds(15), seconds(16), seconds(17)];
}
