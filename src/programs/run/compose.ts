import { AssertionFailure } from '../../base/assert.js';
import { given } from '../../base/given.js';
import { probedWarning } from '../../block/format-guard.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host } from '../../host/host.js';
import { Engine, type EngineProperties } from '../../monitor/engine.js';
import type { RunOptions } from './options.js';
import { StdioSocket } from './stdio.js';

/** What an engine is from its beginning. */
export type StartProperties = Pick<
  EngineProperties,
  'machine' | 'startStopped' | 'incoming' | 'actions' | 'baseProtection' | 'identity'
>;

/** Those that a command line asks for. */
export function startProperties(options: RunOptions): StartProperties {
  const { machine, startStopped, incoming, actions, name, uuid, memoryBytes } = options;
  const { protectsSharedBases: refuses, sharedBasesFolders: folders } = options;
  return {
    ...{ machine, startStopped, incoming: incoming !== undefined, actions },
    baseProtection: { refuses, folders },
    identity: given({ name, uuid, memoryBytes }),
  };
}

/** An engine that has done nothing yet (start.ts); `warn` is told lines for people. */
export function composeEngine(
  host: Host,
  kind: 'machine' | 'storage-daemon',
  properties: StartProperties,
  warn: (text: string) => void,
): Engine {
  const engine = new Engine({
    ...{ host, drivers: allDrivers, kind, ...properties },
    ...(process.env['TMPDIR'] !== undefined && { temporaryFolder: process.env['TMPDIR'] }),
    openStandard: (isEditor) => new StdioSocket({ isEditor }),
    warn,
    print: (line) => void process.stdout.write(`${line}\n`),
    printError: (line) => void process.stderr.write(`${line}\n`),
  });
  engine.opener.onProbed = (name, format, readOnly) =>
    void process.stderr.write(probedWarning(name, format, readOnly));
  engine.graph.onDriverLine = (line) => void process.stderr.write(`${line}\n`);
  engine.opener.onWarning = (text) => warn(`warning: ${text}`);
  engine.hub.onUnexpectedError = (error) => {
    // Those have been told, wherever they were met.
    if (!(error instanceof AssertionFailure)) warn(`internal error: ${describe(error)}`);
  };
  return engine;
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}
