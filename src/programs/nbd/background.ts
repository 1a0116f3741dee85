import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';

/** On which a server in the background tells that it is running. */
const READY_FD = 3;
const READY = 'LIVEDISK_NBD_READY_FD';

/**
 * `--fork`: the same program again, on its own; answers the exit status once it is running, or has failed. What it prints
 * until then is printed here; with `keepsError` it goes on printing where this program does.
 */
export function forkServer(
  args: readonly string[],
  keepsError: boolean,
  printError: (text: string) => void,
): Promise<number> {
  const words = [
    ...process.execArgv,
    process.argv[1] ?? '',
    'nbd',
    ...args.filter((arg) => arg !== '--fork'),
  ];
  const child = spawn(process.execPath, words, {
    detached: true,
    env: { ...process.env, [READY]: String(READY_FD) },
    stdio: ['ignore', 'ignore', keepsError ? 'inherit' : 'pipe', 'pipe'],
  });
  return new Promise((resolve) => {
    child.stderr?.on('data', (chunk: Buffer) => printError(chunk.toString()));
    child.stdio[READY_FD]?.once('data', () => {
      // Nothing of it keeps this process alive.
      child.unref();
      child.stderr?.destroy();
      child.stdio[READY_FD]?.destroy();
      resolve(0);
    });
    child.once('close', (status) => resolve(status ?? 1));
    child.once('error', (error) => {
      printError(`qemu-nbd: Failed to fork: ${error.message}\n`);
      resolve(1);
    });
  });
}

/** Tells whoever waits that the server runs. */
export function tellReady(): void {
  const fd = process.env[READY];
  if (fd === undefined) return;
  delete process.env[READY];
  // Whoever started it is gone from here on, and reads nothing more.
  process.stderr.on('error', () => undefined);
  process.stdout.on('error', () => undefined);
  writeSync(Number(fd), 'r');
  closeSync(Number(fd));
}
