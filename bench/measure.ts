import { spawn, spawnSync } from 'node:child_process';
import { performance } from 'node:perf_hooks';

/** One work that both sides do; each call answers a figure. */
export interface Comparison {
  name: string;
  /** Unit of the figure. */
  unit: string;
  /** Whether a smaller figure is better (times) or a larger one (rates). */
  better: 'less' | 'more';
  peer: () => Promise<number>;
  ours: () => Promise<number>;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}

/** Runs both sides in turn and prints the medians and their ratio: above 1 is in our favour. */
export async function compare(comparison: Comparison, rounds: number): Promise<void> {
  const { name, unit, better } = comparison;
  const peer: number[] = [];
  const ours: number[] = [];
  for (let round = 0; round < rounds; round++) {
    // The order alternates, so that what the first one warms up helps both alike.
    const sides = [
      async () => peer.push(await comparison.peer()),
      async () => ours.push(await comparison.ours()),
    ];
    if (round % 2 === 1) sides.reverse();
    for (const side of sides) await side();
  }
  const [theirs, mine] = [median(peer), median(ours)];
  const gain = better === 'more' ? mine / theirs : theirs / mine;
  const figure = (value: number): string => `${value.toPrecision(3)} ${unit}`.padStart(14);
  const verdict = gain >= 1 ? `${gain.toFixed(2)} x faster` : `${(1 / gain).toFixed(2)} x slower`;
  process.stdout.write(`${name.padEnd(44)}${figure(theirs)}${figure(mine)}   ${verdict}\n`);
}

export function heading(text: string, peer: string): void {
  process.stdout.write(`\n${text.padEnd(44)}${peer.padStart(14)}${'livedisk'.padStart(14)}\n`);
}

/** Seconds that `body` takes. */
export async function seconds(body: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await body();
  return (performance.now() - started) / 1000;
}

/** Runs a program to its end; answers its standard output. Throws when it fails. */
export function run(program: string, args: readonly string[], cwd?: string): string {
  const result = spawnSync(program, args, { cwd, encoding: 'utf8', maxBuffer: 64 * 1024 * 1024 });
  if (result.status !== 0)
    throw new Error(`${program} ${args.join(' ')}: ${result.status}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

/** The same without blocking this process. */
export function runAsync(program: string, args: readonly string[], cwd?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()));
    child.on('error', reject);
    child.on('exit', (code) =>
      code === 0 ? resolve(output) : reject(new Error(`${program} ${args.join(' ')}: ${code}\n${output}`)),
    );
  });
}

/** Programs that are not installed. */
export function missing(...programs: string[]): string[] {
  return programs.filter((program) => spawnSync(program, ['--version']).error !== undefined);
}
