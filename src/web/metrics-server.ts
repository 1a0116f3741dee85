import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { BlockError } from '../base/error.js';
import type { HostClock, SocketAddress } from '../host/host.js';
import { type Execute, readAnswers } from '../view/answers.js';
import { buildView } from '../view/build.js';
import { metricsText } from '../view/metrics.js';
import { isLocalName, isLoopback } from './access.js';
import { listen, SLOW_CLIENTS } from './listen.js';
import { send } from './responses.js';
import { isSame } from './secrets.js';

/** However many scrape, the server is asked once in this time. */
const FRESH_MS = 1000;

export interface MetricsOptions {
  address: SocketAddress;
  /** What `Authorization: Bearer` must say; without one only the machine itself is served. */
  token?: string;
  execute: Execute;
  /** Further servers, which `?target=NAME` asks for. */
  targets?: ReadonlyMap<string, Execute>;
  clock: HostClock;
  /** Who takes nothing of what it asked for is let go after so long. */
  slowReaderMs?: number;
}

/** Serves `/metrics` for Prometheus, and nothing else. */
export class MetricsServer {
  readonly #options: MetricsOptions;
  readonly #server: Server;
  readonly #last = new Map<Execute, { text: Promise<Buffer>; ms: number; isPending: boolean }>();

  private constructor(options: MetricsOptions) {
    this.#options = options;
    this.#server = createServer(SLOW_CLIENTS, (request, response) => void this.#answer(request, response));
  }

  /** Errors: those of listening; permission where others could reach it without a token. */
  static async start(options: MetricsOptions): Promise<MetricsServer> {
    if (options.token === undefined && !isLoopback(options.address))
      throw new BlockError(
        'permission',
        'metrics at an address that other machines reach need a token-file=',
      );
    const server = new MetricsServer(options);
    await listen(server.#server, options.address);
    return server;
  }

  /** The port that was bound, of an inet address. */
  get port(): number | undefined {
    const address = this.#server.address();
    return typeof address === 'object' ? address?.port : undefined;
  }

  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { token, address, slowReaderMs } = this.#options;
    const answer = (status: number, text: string | Buffer, headers: Record<string, string> = {}): void => {
      response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', ...headers });
      send(response, request.method === 'HEAD' ? '' : text, slowReaderMs);
    };
    if (
      token === undefined
        ? address.type === 'inet' && !isLocalName(request.headers.host)
        : !isBearer(request, token)
    )
      return answer(
        token === undefined ? 403 : 401,
        'not allowed\n',
        token === undefined ? {} : { 'www-authenticate': 'Bearer' },
      );
    const [path, query = ''] = (request.url ?? '').split('?');
    if (path !== '/metrics') return answer(404, 'only /metrics is here\n');
    const target = new URLSearchParams(query).get('target');
    const execute = target === null ? this.#options.execute : this.#options.targets?.get(target);
    if (!execute) return answer(404, 'there is no such target\n');
    if (request.method !== 'GET' && request.method !== 'HEAD')
      return answer(405, 'GET only\n', { allow: 'GET, HEAD' });
    try {
      answer(200, await this.#text(execute), { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
    } catch (error) {
      answer(500, `${error instanceof Error ? error.message : String(error)}\n`);
    }
  }

  #text(execute: Execute): Promise<Buffer> {
    const now = this.#options.clock.nowMs();
    const last = this.#last.get(execute);
    // A server that hangs is asked no more until it has answered.
    if (last && (last.isPending || now - last.ms < FRESH_MS)) return last.text;
    // One for all who ask meanwhile, however slowly they take it.
    const text = readAnswers(execute).then((answers) => Buffer.from(metricsText(buildView(answers))));
    const asked = { text, ms: now, isPending: true };
    this.#last.set(execute, asked);
    return text.finally(() => (asked.isPending = false));
  }
}

function isBearer({ headers }: IncomingMessage, token: string): boolean {
  const [, given = ''] = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '') ?? [];
  return isSame(given, token);
}
