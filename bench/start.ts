import { spawnSync } from 'node:child_process';
import { median } from './measure.js';
import { PROGRAM } from './servers.js';

const COMMANDS = ['run', 'storage-daemon', 'img', 'io', 'shell', 'launchers', 'demo'];

/** Milliseconds from start to end. */
function startOf(args: readonly string[]): number {
  const started = performance.now();
  spawnSync(process.execPath, args, { stdio: 'ignore' });
  return performance.now() - started;
}

/** What loading each subcommand adds to the start of the bare runtime; at most as much again is the goal. */
export async function benchStart(rounds: number): Promise<void> {
  const works = [['-e', '0'], ...COMMANDS.map((command) => [PROGRAM, command, '--help'])];
  const times = works.map((): number[] => []);
  for (let round = 0; round < Math.max(5, rounds); round++)
    works.forEach((work, i) => times[i]?.push(startOf(work)));
  const [bare = NaN, ...loaded] = times.map(median);
  process.stdout.write(`\nstart of node: ${bare.toFixed(0)} ms; with a subcommand loaded:\n`);
  COMMANDS.forEach((command, i) => {
    const ms = loaded[i] ?? NaN;
    process.stdout.write(
      `  ${command.padEnd(16)}${ms.toFixed(0).padStart(6)} ms  ${(ms / bare).toFixed(2)} x\n`,
    );
  });
}
