import { BlockError } from '../base/error.js';
import { type DaemonProgram, giveOver } from './takeover/giver.js';
import { planTakeover } from './takeover/plan.js';
import { within } from './takeover/within.js';
import type { Given } from './takeover/live.js';
import type { Parts } from './parts.js';
import type { Caller } from '../wire/qmp/registry.js';

const DEFAULT_TIMEOUT_MS = 5000;

/** Gives this process's place to another one that waits for it: docs/TAKEOVER.md. */
export function registerTakeover(engine: Given & Parts<'command'>): void {
  engine.command('x-takeover', ({ socket, timeout, 'dry-run': isDryRun = false }, caller) => {
    if (isDryRun) return planTakeover(engine);
    if (socket === undefined) throw new BlockError('invalid', "Parameter 'socket' is missing");
    return takeOverAt(engine, socket, caller, timeout);
  });
}

/** Errors: see giveOver; unsupported for an engine that no daemon has; timeout for one that has not begun wholly by then. */
export async function takeOverAt(
  engine: Given,
  socketPath: string,
  asker?: Caller,
  timeoutMs = DEFAULT_TIMEOUT_MS,
): Promise<never> {
  const { daemon, host } = engine;
  if (!daemon) throw new BlockError('unsupported', 'No takeover: this engine is no daemon');
  const late = `No takeover: this process has not begun wholly within ${timeoutMs} ms`;
  const program = await within(host.clock, daemon, { timeoutMs, late });
  return giveOver({ engine, program, socketPath, timeoutMs, asker });
}

export type { DaemonProgram };
