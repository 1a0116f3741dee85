import { Syscalls } from './syscalls.js';

/**
 * Ends the program like process.exit, but does not wait for calls that the kernel still holds. What was written to
 * standard output and standard error is out: to files and pipes Node writes it at once.
 */
export function exitNow(status?: number): void {
  if (status !== undefined) process.exitCode = status;
  process.emit('exit', Number(process.exitCode ?? 0));
  new Syscalls().exit(Number(process.exitCode ?? 0));
}

/** Sends this process a signal, by its name or number. */
export function raiseSignal(signal: NodeJS.Signals | number): void {
  process.kill(process.pid, signal);
}
