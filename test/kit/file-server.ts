import { createReadStream, readFileSync, statSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';

/** What a test saw of a request. */
export interface SeenRequest {
  method: string;
  url: string;
  headers: http.IncomingHttpHeaders;
  /** Of the connection that it came over. */
  port: number;
}

/**
 * A web server for the files of a folder, with ranges. The first part of a path says how it behaves:
 * /f/NAME well; /redirect/NAME sends on to /f; /loop sends on to itself; /away?to=URL to elsewhere; /noranges/NAME,
 * /nolength/NAME as they say; /ignores/NAME sends all of the file whatever is asked; /cut/NAME ends after half of what was
 * asked; /less/NAME answers half of it; /silent/NAME never answers a GET; /once/NAME cuts
 * each connection at its second request; /status/NNN; /private/NAME wants `user` and
 * `password`; /tagged/NAME has an ETag that is the file's time of change.
 */
export class FileServer {
  readonly requests: SeenRequest[] = [];
  readonly #folder: string;
  readonly #server: http.Server;

  private constructor(folder: string, tls?: https.ServerOptions) {
    this.#folder = folder;
    const answer = (request: http.IncomingMessage, response: http.ServerResponse): void =>
      this.#answer(request, response);
    this.#server = tls ? https.createServer(tls, answer) : http.createServer(answer);
  }

  static async start(folder: string, tls?: https.ServerOptions): Promise<FileServer> {
    const server = new FileServer(folder, tls);
    await new Promise<void>((resolve) => server.#server.listen(0, '127.0.0.1', resolve));
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Ends connections, too. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  /** What was asked for of a file. */
  ranges(): string[] {
    return this.requests.filter(({ method }) => method === 'GET').map(({ headers }) => headers.range ?? '');
  }

  #answer(request: http.IncomingMessage, response: http.ServerResponse): void {
    const { method = '', url = '', headers } = request;
    const port = request.socket.remotePort ?? 0;
    const isFirst = !this.requests.some((other) => other.port === port);
    this.requests.push({ method, url, headers, port });
    const { pathname, searchParams } = new URL(url, 'http://x');
    const [, manner = '', name = ''] = /^\/([^/]*)\/?(.*)$/.exec(pathname) ?? [];
    const to = manner === 'loop' ? url : manner === 'redirect' ? `/f/${name}` : searchParams.get('to');
    if (to !== null) return void response.writeHead(302, { location: to }).end();
    if (manner === 'status') return void response.writeHead(Number(name)).end('no');
    if (manner === 'once' && !isFirst) return void request.socket.resetAndDestroy();
    const isKnown = headers.authorization === `Basic ${Buffer.from('user:password').toString('base64')}`;
    if (manner === 'private' && !isKnown) return void response.writeHead(401).end();
    const path = join(this.#folder, name);
    const stat = statSync(path, { throwIfNoEntry: false });
    if (!stat) return void response.writeHead(404).end();
    if (manner !== 'noranges') response.setHeader('accept-ranges', 'bytes');
    if (manner === 'tagged') response.setHeader('etag', `"${stat.mtimeMs}"`);
    if (method === 'HEAD') {
      if (manner !== 'nolength') response.setHeader('content-length', stat.size);
      else response.setHeader('transfer-encoding', 'chunked');
      return void response.end();
    }
    if (manner === 'silent') return;
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
    if (first === undefined || manner === 'ignores') return void response.end(readFileSync(path));
    const [start, end] = [Number(first), Math.min(Number(last), stat.size - 1)];
    const half = start + Math.floor((end - start) / 2);
    const until = manner === 'less' ? half : end;
    response.writeHead(206, {
      'content-range': `bytes ${start}-${until}/${stat.size}`,
      'content-length': until - start + 1,
    });
    const stream = createReadStream(path, { start, end: manner === 'cut' ? half : until });
    if (manner !== 'cut') return void stream.pipe(response);
    stream.pipe(response, { end: false });
    stream.once('end', () => response.destroy());
  }
}
