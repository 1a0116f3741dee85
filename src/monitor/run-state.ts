import { deferred } from '../base/async.js';
import { GRACE_MS } from '../block/graph.js';
import type { RunState } from '../attach/run-state.js';
import { quiesceGuest } from '../attach/quiesce.js';
import { Waiting } from '../wire/qmp/registry.js';
import type { Parts } from './parts.js';

export type Running = Parts<'graph' | 'devices' | 'runState' | 'moves'>;
export type Quitting = Parts<
  'kind' | 'graph' | 'host' | 'jobs' | 'exports' | 'emit' | 'quitting' | 'endJobs'
>;

export function registerRunState(engine: Running & Quitting & Parts<'command'>): void {
  const { runState } = engine;
  engine.command('quit', () => new Waiting(quit(engine)));
  if (engine.kind !== 'machine') return;
  engine.command('query-status', () => ({
    status: runState.status,
    singlestep: false,
    running: runState.isRunning,
  }));
  engine.command('stop', () => stop(engine));
  engine.command('cont', () => cont(engine));
}

/** After this no request of the guest is in flight, and all that it wrote is on disk unless a flush fails. */
export async function stop(engine: Running, status?: Parameters<RunState['stop']>[0]): Promise<void> {
  if (!engine.runState.stop(status)) return;
  await quiesceGuest(engine.graph, engine.devices.values());
}

/**
 * Images that another process has had become ours, before the guest uses them. Errors: invalid in a state that cannot go
 * on; busy while the machine is, or may be, another one's; those of activate.
 */
export async function cont(engine: Running): Promise<void> {
  engine.moves.assertOwner();
  engine.runState.assertMayResume();
  await engine.moves.beforeStart();
  for (const device of engine.devices.values()) device.ioStatus = 'ok';
  engine.runState.resume();
}

/** Answers when all jobs are over; the program has begun to end by then. */
export async function quit(engine: Quitting): Promise<void> {
  // What is kept of the daemon is what it was, not how it ends.
  engine.graph.keeper = undefined;
  if (engine.kind === 'machine') engine.emit('SHUTDOWN', { guest: false, reason: 'host-qmp-quit' });
  else await closeExports(engine);
  engine.quitting.resolve();
  await engine.endJobs();
}

/**
 * A client's write may wait for a job's copy, which ends only with the job. What hangs otherwise the end of the program waits
 * for, and says so; it also tells what went wrong here.
 */
async function closeExports(engine: Parts<'host' | 'jobs' | 'exports'>): Promise<void> {
  const { clock } = engine.host;
  const late = deferred();
  const timers = [
    clock.setTimer(GRACE_MS / 2, () => void engine.jobs.cancelAll()),
    clock.setTimer(GRACE_MS, () => late.resolve()),
  ];
  await Promise.race([engine.exports.close().catch(() => undefined), late.promise]);
  for (const timer of timers) timer.cancel();
}
