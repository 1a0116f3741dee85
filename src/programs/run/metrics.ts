import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import { readWholeFile } from '../../block/objects/whole-file.js';
import type { Host, SocketAddress } from '../../host/host.js';
import type { Engine } from '../../monitor/engine.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import type { MetricsOptions, MetricsServer } from '../../web/metrics-server.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';

/** `-metrics unix:PATH|HOST:PORT[,token-file=FILE]`. */
export interface MetricsOption {
  address: SocketAddress;
  tokenFile?: string;
}

/** Shorter ones can be guessed. */
const LEAST_TOKEN_CHARACTERS = 16;

/** Errors: invalid. */
export function parseMetrics(value: string): MetricsOption {
  const [, where = '', tokenFile] = /^(.*?)(?:,token-file=(.+))?$/s.exec(value) ?? [];
  const address = parseMonitorAddress(where);
  if (where.includes(',') || (address.type === 'unix' && !where.startsWith('unix:')))
    throw new BlockError(
      'invalid',
      `'${value}' is not unix:PATH or HOST:PORT, with ,token-file=FILE or without`,
    );
  return { address, ...given({ tokenFile }) };
}

/** Errors: those of the token's file and of listening. */
export function startMetrics(engine: Engine, option: MetricsOption): Promise<MetricsServer> {
  const execute = (command: string, args: JsonObject = {}): Promise<JsonValue> =>
    engine.hub.execute(command, args) as Promise<JsonValue>;
  return serveMetrics(engine.host, option, { execute });
}

/** Of any servers. Errors: as startMetrics's. */
export async function serveMetrics(
  host: Host,
  { address, tokenFile }: MetricsOption,
  asked: Pick<MetricsOptions, 'execute' | 'targets'>,
): Promise<MetricsServer> {
  const token = tokenFile === undefined ? undefined : await readToken(host, tokenFile);
  if (address.type === 'unix') await removeStale(host, address.path);
  const { MetricsServer: Metrics } = await import('../../web/metrics-server.js');
  return Metrics.start({ address, ...given({ token }), ...asked, clock: host.clock });
}

async function readToken(host: Host, path: string): Promise<string> {
  const token = (await readWholeFile(host, path)).toString('utf8').trim();
  if (token.length >= LEAST_TOKEN_CHARACTERS && /^[!-~]+$/.test(token)) return token;
  const what = `${LEAST_TOKEN_CHARACTERS} printable characters or more, without spaces`;
  throw new BlockError('invalid', `the token in '${path}' must have ${what}`);
}

/** A socket that a process left behind which is gone. */
async function removeStale(host: Host, path: string): Promise<void> {
  if ((await host.files.stat(path))?.isSpecial === 'socket') await host.files.unlink(path);
}
