import { spawn, spawnSync } from 'node:child_process';
import { performance } from 'node:perf_hooks';
import { disturbance, lookAround, type Quiet, writtenMiB } from './machine.js';

/** What one run answers. */
export interface Sample {
  /** In the comparison's unit. */
  figure: number;
  /** Processor time, user and system, of the program that is measured: in seconds, or as the heading says. */
  cpu: number;
  /** Of the figure: after the program had said that it was done, until all was on disk. */
  syncSeconds?: number;
}

/** One work that both sides do. */
export interface Comparison {
  name: string;
  /** Unit of the figures. */
  unit: string;
  /** Whether a smaller figure is better (times) or a larger one (rates). */
  better: 'less' | 'more';
  peer: () => Promise<Sample>;
  ours: () => Promise<Sample>;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}

const NAME_WIDTH = 40;
const CELL_WIDTH = 9;

export interface Rounds {
  /** Runs of each side. */
  count: number;
  /** Each run is told too, with what it has given to the disks. */
  isEachTold: boolean;
}

/** Runs both sides in turn and prints each one's spread and processor time, and the ratio of the medians. */
export async function compare(comparison: Comparison, rounds: Rounds): Promise<void> {
  const { name, unit, better } = comparison;
  const peer: Sample[] = [];
  const ours: Sample[] = [];
  const looks: Quiet[] = [];
  for (let round = 0; round < rounds.count; round++) {
    // The order alternates, so that what the first one warms up helps both alike.
    const sides: Array<['peer' | 'ours', Sample[]]> = [
      ['peer', peer],
      ['ours', ours],
    ];
    if (round % 2 === 1) sides.reverse();
    for (const [side, samples] of sides) {
      const look = await lookAround();
      looks.push(look);
      const writtenBefore = writtenMiB();
      const sample = await comparison[side]();
      samples.push(sample);
      if (rounds.isEachTold) tell(side, sample, look, writtenMiB() - writtenBefore);
    }
  }
  const of = (samples: readonly Sample[], part: (sample: Sample) => number): number =>
    median(samples.map(part));
  const wall = gain(of(peer, figureOf), of(ours, figureOf), better);
  const cpu = gain(of(peer, cpuOf), of(ours, cpuOf), 'less');
  const verdict = `${words(wall, 'faster', 'slower')}, ${words(cpu, 'less CPU', 'more CPU')}`;
  const label = `${name} (${unit})`.padEnd(NAME_WIDTH);
  process.stdout.write(`${label}${cells(peer)} |${cells(ours)}   ${verdict}\n`);
  const disturbed = disturbance(looks);
  if (disturbed !== '') process.stdout.write(`${' '.repeat(NAME_WIDTH)}${disturbed}\n`);
}

/** All that the disks were given includes what prepared the run, and other programs'. */
function tell(side: 'peer' | 'ours', sample: Sample, look: Quiet, diskMiB: number): void {
  const { figure, cpu, syncSeconds } = sample;
  const parts = [`figure ${brief(figure)}`, `CPU ${brief(cpu)}`];
  if (syncSeconds !== undefined) parts.push(`sync ${brief(syncSeconds)} s`);
  parts.push(`before: ${look.busyCpus.toFixed(1)} CPUs busy, ${look.dirtyMiB.toFixed(0)} MiB dirty`);
  parts.push(`disks: ${diskMiB.toFixed(0)} MiB`);
  process.stdout.write(`    ${side}: ${parts.join(', ')}\n`);
}

const figureOf = ({ figure }: Sample): number => figure;
const cpuOf = ({ cpu }: Sample): number => cpu;

/** Above 1 is in our favour. */
function gain(theirs: number, mine: number, better: 'less' | 'more'): number {
  return better === 'more' ? mine / theirs : theirs / mine;
}

function words(ratio: number, better: string, worse: string): string {
  if (!Number.isFinite(ratio)) return `no ${better} known`;
  return ratio >= 1 ? `${ratio.toFixed(2)} x ${better}` : `${(1 / ratio).toFixed(2)} x ${worse}`;
}

/** Least, median and most of the figure, the processor's time, and the last part that was left to sync. */
function cells(samples: readonly Sample[]): string {
  const figures = samples.map(figureOf);
  const parts = [Math.min(...figures), median(figures), Math.max(...figures), median(samples.map(cpuOf))];
  const texts = parts.map(brief);
  const syncs = samples.flatMap(({ syncSeconds }) => syncSeconds ?? []);
  texts.push(syncs.length === 0 ? '' : brief(median(syncs)));
  return texts.map((text) => text.padStart(CELL_WIDTH)).join('');
}

/** Three digits; large numbers whole, small ones to a tenth of a thousandth. */
function brief(value: number): string {
  if (Math.abs(value) >= 1000) return value.toFixed(0);
  return Math.abs(value) >= 0.01 ? value.toPrecision(3) : value.toFixed(4);
}

export function heading(text: string, peer: string, cpuColumn = 'CPU s'): void {
  const side = ['min', 'median', 'max', cpuColumn, 'sync s']
    .map((cell) => cell.padStart(CELL_WIDTH))
    .join('');
  const sideWidth = 5 * CELL_WIDTH;
  process.stdout.write(
    `\n${text.padEnd(NAME_WIDTH)}${peer.padStart(sideWidth)} |${'livedisk'.padStart(sideWidth)}\n`,
  );
  process.stdout.write(`${' '.repeat(NAME_WIDTH)}${side} |${side}\n`);
}

/** Seconds that `body` takes. */
export async function seconds(body: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await body();
  return (performance.now() - started) / 1000;
}

/** Runs a program to its end, `input` on its standard input; answers its standard output. Throws when it fails. */
export function run(argv: readonly string[], cwd?: string, input?: string): string {
  const [program = '', ...args] = argv;
  const result = spawnSync(program, args, {
    cwd,
    ...(input === undefined ? {} : { input }),
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  });
  if (result.status !== 0)
    throw new Error(`${argv.join(' ')}: ${result.status}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** The same without blocking this process. */
export function runAsync(argv: readonly string[], cwd?: string): Promise<string> {
  const [program = '', ...args] = argv;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.on('error', reject);
    child.on('exit', (code) =>
      code === 0 ? resolve(output) : reject(new Error(`${argv.join(' ')}: ${code}\n${output}`)),
    );
  });
}

/** Programs that are not installed. */
export function missing(...programs: string[]): string[] {
  return programs.filter((program) => spawnSync(program, ['--version']).error !== undefined);
}

/** Says what is lacking and that a section is left out; answers whether it is. */
export function isSkipped(section: string, lacking: readonly string[]): boolean {
  if (lacking.length > 0)
    process.stdout.write(`\n${section}: skipped, not installed: ${lacking.join(', ')}\n`);
  return lacking.length > 0;
}
