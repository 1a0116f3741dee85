import { errnoText } from '../base/error.js';

/**
 * Output that nobody takes any more is dropped and the work goes on: a served disk and a half converted image must not
 * suffer from `| head -1`. A reader that has gone is no failure; a full disk under standard output is told, and makes
 * the exit status 1.
 */
export function outliveOutput(): void {
  let failed = false;
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE' || failed) return;
    failed = true;
    process.stderr.write(`livedisk: standard output: ${errnoText(error.code ?? error.message)}\n`);
  });
  process.stderr.on('error', () => undefined);
  process.on('exit', () => {
    if (failed && (process.exitCode ?? 0) === 0) process.exitCode = 1;
  });
}
