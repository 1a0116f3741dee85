import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { WebServer, type WebOptions } from '../../web/server.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import { parseWords } from '../screen/arguments.js';
import { type MetricsOption, parseMetrics, serveMetrics } from '../run/metrics.js';
import type { MetricsServer } from '../../web/metrics-server.js';
import { AllowedFiles } from './allowed-files.js';
import { ENGINE_OPTIONS, OwnEngine } from './own-engine.js';
import { readPage } from './page-files.js';
import { programsParts } from './setup.js';
import { readTls } from './tls-files.js';

export const WEB_USAGE = `usage: livedisk web [OPTION]... [SOCKET]...

Serves a page to this machine's browser that draws the disks of running livedisks, qemu-storage-daemons and QEMUs by
their QMP sockets (PATH, unix:PATH or HOST:PORT), and changes them. Prints the page's address, which is good once.

  --blockdev OPTIONS   an engine in this process, with nodes, exports, servers and objects as qemu-storage-daemon's;
  --export OPTIONS     it ends with the page
  --nbd-server OPTIONS
  --object OPTIONS
  --listen HOST:PORT   default 127.0.0.1:0, a free port; beyond this machine only with --tls-creds
  --tls-creds FOLDER   serve over TLS, to clients with a certificate: of ca-cert.pem, server-cert.pem, server-key.pem
  --tls-client NAME    only to those whose certificate has this common name (may be repeated)
  --metrics unix:PATH|HOST:PORT[,token-file=FILE]
                       numbers for Prometheus at /metrics, without the page's token: of the first server, and of each
                       by ?target=SOCKET; beyond this machine only with a token
  --allow FOLDER       files in it may be named: targets of copies, new layers, images whose clusters are mapped
  --folder FOLDER      from where a QEMU sees relative names, for points in time
  --read-only          only look
  --console            QMP by hand, of what does not reach beyond the disks, with completion
`;

const OPTIONS = {
  object: { type: 'string', multiple: true },
  'nbd-server': { type: 'string', multiple: true },
  blockdev: { type: 'string', multiple: true },
  export: { type: 'string', multiple: true },
  listen: { type: 'string' },
  'tls-creds': { type: 'string' },
  'tls-client': { type: 'string', multiple: true },
  metrics: { type: 'string' },
  allow: { type: 'string', multiple: true },
  folder: { type: 'string' },
  'read-only': { type: 'boolean' },
  console: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const;

/** `livedisk web`, until a signal. Errors: invalid; those of listening. */
export async function webMain(args: readonly string[]): Promise<number> {
  const { values, positionals } = parseWords(args, OPTIONS, WEB_USAGE);
  if (values.help === true) {
    process.stdout.write(WEB_USAGE);
    return 0;
  }
  const hasEngine = ENGINE_OPTIONS.some((name) => values[name] !== undefined);
  if (positionals.length === 0 && !hasEngine)
    throw new BlockError('invalid', 'web: a SOCKET is needed, or --blockdev', { hint: WEB_USAGE });
  const host = createRealHost();
  const files = new AllowedFiles(values.allow ?? []);
  const address = listenAddress(values.listen ?? '127.0.0.1:0');
  const page = readPage();
  const tls = readTls(values['tls-creds'], values['tls-client']);
  const servers = [...new Set(positionals)].map((name) => ({ name, address: parseMonitorAddress(name) }));
  const folder = values.folder ?? (hasEngine ? process.cwd() : undefined);
  const engine = hasEngine ? await OwnEngine.start(host, values) : undefined;
  try {
    if (engine) servers.unshift({ name: OWN_NAME, address: engine.address });
    await serve(
      {
        ...{ host, address, servers, page, tls },
        isReadOnly: values['read-only'] === true,
        hasConsole: values.console === true,
        ...programsParts({ host, files, servers, folder }),
      },
      engine?.isOver ?? nextSignal(),
      values.metrics === undefined ? undefined : parseMetrics(values.metrics),
    );
  } finally {
    await engine?.close();
  }
  return 0;
}

/** What the engine in this process is called on the page. */
const OWN_NAME = 'this process';

/** Errors: those of listening. */
async function serve(
  options: WebOptions,
  isOver: Promise<void>,
  metricsOption: MetricsOption | undefined,
): Promise<void> {
  const server = await WebServer.start(options);
  let metrics: MetricsServer | undefined;
  try {
    const targets = server.executes;
    const [execute] = targets.values();
    if (metricsOption && execute)
      metrics = await serveMetrics(options.host, metricsOption, { execute, targets });
    process.stdout.write(`${server.url}\n`);
    await isOver;
  } finally {
    await metrics?.close();
    await server.close();
  }
}

function nextSignal(): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.once(signal, () => resolve());
  });
}

/** Unlike a server's, a page's port may be any that is free. */
function listenAddress(text: string): SocketAddress {
  const [, host = '', port = ''] = /^(?:\[(?=.*\]))?([^\]]*?)\]?:(\d{1,5})$/.exec(text) ?? [];
  if (host === '' || Number(port) > 65535)
    throw new BlockError('invalid', `--listen needs HOST:PORT, not '${text}'`);
  return { type: 'inet', host, port: Number(port) };
}
