import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { BlockError } from '../base/error.js';
import type { Host, SocketAddress } from '../host/host.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../schema/types.js';
import { isForPeople } from '../wire/qmp/registry.js';
import { isLoopback } from './access.js';
import { Api, type ApiOptions } from './api.js';
import { refusalOf, SECURITY_HEADERS } from './guard.js';
import { listen } from './listen.js';
import { MonitorLink, textOf } from './monitor-link.js';
import { Push } from './push.js';
import { RequestLimit } from './rate-limit.js';
import { Sessions } from './sessions.js';

export interface WebOptions extends ApiOptions {
  readonly host: Host;
  readonly address: SocketAddress;
  /** Monitors, by what people call them. */
  readonly servers: ReadonlyArray<{ readonly name: string; readonly address: SocketAddress }>;
  readonly page: PageFiles;
}

/** By path. */
export type PageFiles = ReadonlyMap<string, { readonly type: string; readonly body: Buffer }>;

const MOST_BODY_BYTES = 64 * 1024;
const REQUESTS = { burst: 60, perSecond: 20 };
/** Monitors are let go when nobody has watched for so long: a page that is loaded anew is no reason. */
const LINGER_MS = 10_000;
/** Requests give paths only. */
const ORIGIN = 'http://localhost';

/** `livedisk web`: the page, what it is pushed, and what it asks for. */
export class WebServer {
  readonly #options: WebOptions;
  readonly #server: Server;
  readonly #sessions: Sessions;
  readonly #limit: RequestLimit;
  readonly #links: readonly MonitorLink[];
  readonly #push: Push;
  readonly #api: Api;

  private constructor(options: WebOptions) {
    const { host, servers } = options;
    this.#options = options;
    this.#sessions = new Sessions(host.random, host.clock);
    this.#limit = new RequestLimit(host.clock, REQUESTS);
    this.#push = new Push((count) => this.#watch(count > 0));
    const listener = {
      onState: (state: Parameters<Push['state']>[0]) => this.#push.state(state),
      onLog: (entry: Parameters<Push['entry']>[0]) => this.#push.entry(entry),
    };
    this.#links = servers.map(({ name, address }) => new MonitorLink(host, address, name, listener));
    this.#api = new Api(this.#links, options);
    this.#server = createServer((request, response) => {
      this.#answer(request, response).catch((error: unknown) => {
        sendText(response, 500, `internal error: ${String(error)}`);
      });
    });
  }

  /** Errors: permission beyond this machine; those of listening. */
  static async start(options: WebOptions): Promise<WebServer> {
    if (!isLoopback(options.address) || options.address.type !== 'inet')
      throw new BlockError(
        'permission',
        'the page is only served to this machine: use 127.0.0.1, and a tunnel (ssh -L) from elsewhere',
      );
    const server = new WebServer(options);
    await listen(server.#server, options.address);
    return server;
  }

  /** Where to go, with the token that is good once. */
  get url(): string {
    const bound = this.#server.address();
    const { address } = this.#options;
    const host = address.type === 'inet' ? address.host : '';
    const port = typeof bound === 'object' ? bound?.port : undefined;
    return `http://${host.includes(':') ? `[${host}]` : host}:${port ?? 0}/?token=${this.#sessions.token}`;
  }

  async close(): Promise<void> {
    this.#watch(false, 0);
    this.#push.close();
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
    for (const link of this.#links) link.watch(false);
  }

  #unwatching: { cancel(): void } | undefined;

  #watch(isWatched: boolean, lingerMs = LINGER_MS): void {
    this.#unwatching?.cancel();
    this.#unwatching = undefined;
    const set = (): void => {
      for (const link of this.#links) link.watch(isWatched);
    };
    if (isWatched || lingerMs === 0) set();
    else this.#unwatching = this.#options.host.clock.setTimer(lingerMs, set);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    for (const [name, value] of Object.entries(SECURITY_HEADERS)) response.setHeader(name, value);
    const refusal = refusalOf(request, { hostNames: [] });
    if (refusal) return sendText(response, refusal.status, refusal.text);
    const url = request.url ?? '/';
    if (!URL.canParse(url, ORIGIN)) return sendText(response, 400, 'that is no address');
    const { pathname, searchParams } = new URL(url, ORIGIN);
    const token = searchParams.get('token');
    if (pathname === '/' && token !== null && request.method === 'GET') return this.#login(token, response);
    const session = this.#sessions.find(request);
    if (session === undefined)
      return sendText(response, 401, 'Open the address that "livedisk web" printed; it is good once.');
    if (!this.#limit.take(session)) return sendText(response, 429, 'too many requests; wait a second');
    if (request.method === 'POST') return this.#post(pathname, request, response);
    this.#get(pathname, response);
  }

  /** The token goes from the address by the redirection; the page never sees it. */
  #login(token: string, response: ServerResponse): void {
    const login = this.#sessions.login(token);
    if (login === 'wait') return sendText(response, 429, 'too many tokens were tried; wait a minute');
    if (login === 'wrong')
      return sendText(
        response,
        401,
        'This address is not good any more: start "livedisk web" again for another.',
      );
    response.writeHead(303, { 'set-cookie': login.cookie, location: '/' });
    response.end();
  }

  #get(pathname: string, response: ServerResponse): void {
    if (pathname === '/api/events') return this.#stream(response);
    if (pathname === '/api/log') {
      response.writeHead(200, {
        'content-type': 'application/x-ndjson; charset=utf-8',
        'content-disposition': 'attachment; filename="livedisk-log.jsonl"',
      });
      response.end(this.#push.log.map((entry) => `${JSON.stringify(entry)}\n`).join(''));
      return;
    }
    const file = this.#options.page.get(pathname === '/' ? '/index.html' : pathname);
    if (!file) return sendText(response, 404, 'there is no such page');
    response.writeHead(200, { 'content-type': file.type });
    response.end(file.body);
  }

  #stream(response: ServerResponse): void {
    const { isReadOnly, hasConsole } = this.#options;
    const names = this.#links.map(({ name }) => name);
    response.setHeader('content-type', 'text/event-stream; charset=utf-8');
    if (!this.#push.add(response, { servers: names, isReadOnly, hasConsole }))
      sendText(response, 503, 'too many watch already');
  }

  async #post(pathname: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [, what] = /^\/api\/([a-z]+)$/.exec(pathname) ?? [];
    try {
      const body = await readBody(request);
      const answer = what === undefined ? undefined : await this.#api.answer(what, body);
      if (!answer) return sendText(response, 404, 'there is no such thing to ask for');
      sendJson(response, 200, answer);
    } catch (error) {
      if (!isForPeople(error)) throw error;
      const isForbidden = error instanceof BlockError && error.kind === 'permission';
      sendJson(response, isForbidden ? 403 : 400, { error: textOf(error) });
    }
  }
}

/** Errors: invalid, for what is too long or no object. */
async function readBody(request: IncomingMessage): Promise<JsonObject> {
  const chunks: Buffer[] = [];
  let lengthBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    lengthBytes += chunk.length;
    if (lengthBytes > MOST_BODY_BYTES) throw new BlockError('invalid', 'what was sent is too long');
    chunks.push(chunk);
  }
  let value: JsonValue;
  try {
    value = JSON.parse(Buffer.concat(chunks).toString('utf8')) as JsonValue;
  } catch {
    throw new BlockError('invalid', 'what was sent is no JSON');
  }
  if (!isJsonObject(value)) throw new BlockError('invalid', 'what was sent is no object');
  return value;
}

function sendText(response: ServerResponse, status: number, text: string): void {
  if (response.headersSent) return void response.end();
  response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8' });
  response.end(`${text}\n`);
}

function sendJson(response: ServerResponse, status: number, value: object): void {
  response.writeHead(status, { 'content-type': 'application/json; charset=utf-8' });
  response.end(JSON.stringify(value, (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one)));
}
