import { given } from '../../base/given.js';
import { probedWarning } from '../../block/format-guard.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { Engine } from '../../monitor/engine.js';
import type { RunOptions } from './options.js';
import { StdioSocket } from './stdio.js';

/** An engine as a command line asks for it, which has done nothing yet (start.ts); `warn` is told lines for people. */
export function composeEngine(
  host: Host,
  kind: 'machine' | 'storage-daemon',
  options: RunOptions,
  warn: (text: string) => void,
): Engine {
  const engine = new Engine({
    host,
    drivers: allDrivers,
    kind,
    machine: options.machine,
    ...(process.env['TMPDIR'] !== undefined && { temporaryFolder: process.env['TMPDIR'] }),
    startStopped: options.startStopped,
    incoming: options.incoming !== undefined,
    actions: options.actions,
    baseProtection: { refuses: options.protectsSharedBases, folders: options.sharedBasesFolders },
    identity: given({ name: options.name, uuid: options.uuid, memoryBytes: options.memoryBytes }),
    openStandard: (isEditor) => new StdioSocket({ isEditor }),
    warn,
    print: (line) => void process.stdout.write(`${line}\n`),
  });
  engine.opener.onProbed = (name, format, readOnly) =>
    void process.stderr.write(probedWarning(name, format, readOnly));
  engine.graph.onDriverLine = (line) => void process.stderr.write(`${line}\n`);
  engine.opener.onWarning = (text) => warn(`warning: ${text}`);
  engine.hub.onUnexpectedError = (error) => warn(`internal error: ${describe(error)}`);
  return engine;
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
