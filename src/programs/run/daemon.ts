import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import { BlockError } from '../../base/error.js';
import { needsTerminal, type RunOptions } from './options.js';

/** Tells the program, started anew, by which descriptor it says that it serves. */
const READY_FD = 'LIVEDISK_READY_FD';

/** Errors: invalid for what a process without a terminal cannot do, in QEMU's words. */
export function checkDaemon(options: RunOptions): void {
  if (needsTerminal(options)) throw new BlockError('invalid', '-nographic cannot be used with -daemonize');
  for (const step of options.steps)
    if (step.kind === 'chardev' && step.device.backend.type === 'stdio')
      throw new BlockError('invalid', `${step.text}: cannot use stdio with -daemonize`);
}

/** Whether this process is the one that goes on serving. */
export function isDaemon(): boolean {
  return process.env[READY_FD] !== undefined;
}

/**
 * Starts the program anew, in a session of its own, and waits until that one serves or has ended: the answer is this
 * one's exit status. What it prints until then is printed here.
 */
export async function daemonize(words: readonly string[]): Promise<number> {
  const fds = passedDescriptors(words);
  const readyFd = Math.max(2, ...fds) + 1;
  const stdio = Array.from({ length: readyFd + 1 }, (_, fd): 'pipe' | 'ignore' | number => {
    if (fd === 1 || fd === 2 || fd === readyFd) return 'pipe';
    return fds.has(fd) ? fd : 'ignore';
  });
  const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    detached: true,
    env: { ...process.env, [READY_FD]: String(readyFd) },
    stdio,
  });
  child.stdout?.pipe(process.stdout);
  child.stderr?.pipe(process.stderr);
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    // After all that it printed.
    child.once('close', () => resolve(1));
    child.stdio[readyFd]?.once('data', () => {
      child.unref();
      // What it prints from here on nobody reads.
      for (const stream of child.stdio) stream?.destroy();
      resolve(0);
    });
  });
}

/** Descriptors that the command line names: monitors' sockets, -add-fd, servers'. */
function passedDescriptors(words: readonly string[]): Set<number> {
  const found = words.flatMap((word) => [...word.matchAll(/(?:^|[,:])(?:fd=|addr\.str=|fd:)(\d+)/g)]);
  return new Set(found.map(([, fd]) => Number(fd)).filter((fd) => fd > 2));
}

/** The daemon serves: who started it may go. Like QEMU's it holds no folder. */
export function tellReady(): void {
  const fd = Number(process.env[READY_FD]);
  delete process.env[READY_FD];
  process.chdir('/');
  writeSync(fd, 'ready');
  closeSync(fd);
}
