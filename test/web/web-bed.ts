import assert from 'node:assert/strict';
import { type IncomingMessage, request } from 'node:http';
import type { TestContext } from 'node:test';
import type { HostSocket } from '../../src/host/host.js';
import { createRealHost } from '../../src/host/real.js';
import { AllowedFiles } from '../../src/programs/web/allowed-files.js';
import { programsParts } from '../../src/programs/web/setup.js';
import { WebServer, type WebOptions } from '../../src/web/server.js';
import { QmpSession } from '../../src/wire/qmp/session.js';
import { EngineBed } from '../engine/engine-bed.js';

interface Answer {
  status: number | undefined;
  headers: IncomingMessage['headers'];
  text: string;
}

/** A web server of an engine with the chain A <-- B <-- C, and a browser's cookie. */
export class WebBed {
  readonly bed: EngineBed;
  readonly url: URL;
  cookie = '';

  readonly #sockets: HostSocket[];

  readonly #server: WebServer;

  private constructor(bed: EngineBed, server: WebServer, sockets: HostSocket[]) {
    this.bed = bed;
    this.#server = server;
    this.url = new URL(server.url);
    this.#sockets = sockets;
  }

  /** That came to the monitor until now. */
  get connections(): number {
    return this.#sockets.length;
  }

  /** As by a signal. */
  end(): Promise<void> {
    return this.#server.close();
  }

  /** The monitor breaks its connections off. */
  hangUp(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  static async start(t: TestContext, options: Partial<WebOptions> = {}): Promise<WebBed> {
    const bed = new EngineBed(t);
    await bed.chain('A', 'B', 'C');
    const path = bed.path('qmp.sock');
    const sockets: HostSocket[] = [];
    const listener = await bed.engine.host.net.listen({ type: 'unix', path }, (socket) => {
      sockets.push(socket);
      new QmpSession(bed.engine.hub, socket);
    });
    t.after(() => listener.close());
    const host = createRealHost();
    const files = new AllowedFiles([bed.folder]);
    const servers: WebOptions['servers'] = [{ name: 'disk', address: { type: 'unix', path } }];
    const server = await WebServer.start({
      host,
      address: { type: 'inet', host: '127.0.0.1', port: 0 },
      servers,
      page: new Map([['/index.html', { type: 'text/html', body: Buffer.from('<!doctype html>') }]]),
      isReadOnly: false,
      hasConsole: false,
      ...programsParts({ host, files, servers, folder: bed.folder }),
      ...options,
    });
    t.after(() => server.close());
    return new WebBed(bed, server, sockets);
  }

  /** As a browser's page sends it, unless `headers` say else. */
  ask(
    path: string,
    body?: object,
    headers: Record<string, string | undefined> = {},
    method?: string,
  ): Promise<Answer> {
    const { host, port } = this.url;
    const given = {
      host,
      ...(this.cookie !== '' && { cookie: this.cookie }),
      ...(body && {
        'content-type': 'application/json',
        origin: `http://${host}`,
        'sec-fetch-site': 'same-origin',
      }),
      ...headers,
    };
    const sent = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
    return new Promise((resolve, reject) => {
      const options = {
        host: '127.0.0.1',
        port,
        path,
        method: method ?? (body ? 'POST' : 'GET'),
        headers: sent,
      };
      request({ ...options, setHost: false }, (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk.toString()));
        response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }));
      })
        .on('error', reject)
        .end(body && JSON.stringify(body));
    });
  }

  async login(): Promise<void> {
    const { headers } = await this.ask(`/${this.url.search}`);
    this.cookie = headers['set-cookie']?.[0]?.split(';')[0] ?? '';
    assert.notEqual(this.cookie, '');
  }

  async error(path: string, body: object): Promise<[number | undefined, string]> {
    const { status, text } = await this.ask(path, body);
    return [status, (JSON.parse(text) as { error: string }).error];
  }

  /** Reads the stream of events until `isEnough`. */
  events(isEnough: (event: string, data: never) => boolean): Promise<void> {
    const { port, host } = this.url;
    return new Promise((resolve, reject) => {
      const asked = request({
        host: '127.0.0.1',
        port,
        path: '/api/events',
        headers: { host, cookie: this.cookie },
      });
      asked.on('error', reject).on('response', (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => {
          text += chunk.toString();
          for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
            const [, event = '', data = ''] = /^event: (\w+)\ndata: (.*)$/s.exec(text.slice(0, end)) ?? [];
            text = text.slice(end + 2);
            if (!isEnough(event, JSON.parse(data) as never)) continue;
            asked.destroy();
            resolve();
            return;
          }
        });
      });
      asked.end();
    });
  }
}
