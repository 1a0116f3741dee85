import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createSecureServer, type Server as SecureServer } from 'node:https';
import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { Host, SocketAddress } from '../host/host.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../schema/types.js';
import type { Execute } from '../view/answers.js';
import type { ClusterMap } from '../view/cluster-map.js';
import type { FileFacts, View } from '../view/model.js';
import { isForPeople } from '../wire/qmp/registry.js';
import { isLoopback } from './access.js';
import { Api, type ApiOptions } from './api.js';
import { refusalOf, SECURITY_HEADERS } from './guard.js';
import { listen, SLOW_CLIENTS } from './listen.js';
import { MonitorLink, textOf } from './monitor-link.js';
import { Push } from './push.js';
import { RequestLimit } from './rate-limit.js';
import { send, sendJson, sendLines, sendText } from './responses.js';
import { Sessions } from './sessions.js';
import { isAuthorised, namesOf, serverOptions, type WebTls } from './tls.js';

export interface WebOptions extends ApiOptions {
  readonly host: Host;
  readonly address: SocketAddress;
  /** Monitors, by what people call them. */
  readonly servers: ReadonlyArray<{ readonly name: string; readonly address: SocketAddress }>;
  readonly page: PageFiles;
  /** Needed beyond this machine. */
  readonly tls?: WebTls | undefined;
  /** What this machine tells of the files of a server's images, by the images' ids. */
  readonly lookAtFiles: (server: string, view: View) => Promise<ReadonlyMap<string, FileFacts>>;
  /** Block status of an image whose file may be named. Errors: permission, those of reading. */
  readonly readMap: (server: string, view: View, id: string) => Promise<ClusterMap | undefined>;
}

/** By path. */
export type PageFiles = ReadonlyMap<string, { readonly type: string; readonly body: Buffer }>;

const MOST_BODY_BYTES = 64 * 1024;
const REQUESTS = { burst: 60, perSecond: 20 };
/** Monitors are let go when nobody has watched for so long: a page that is loaded anew is no reason. */
const LINGER_MS = 10_000;
const GO_ON = '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>livedisk</title>';
/** When the server ends, what it is in the midst of has so long to come to its end. */
const LAST_MS = 5000;
/** Requests give paths only. */
const ORIGIN = 'http://localhost';

/** `livedisk web`: the page, what it is pushed, and what it asks for. */
export class WebServer {
  readonly #options: WebOptions;
  readonly #server: Server | SecureServer;
  readonly #hostNames: readonly string[];
  readonly #sessions: Sessions;
  readonly #limit: RequestLimit;
  readonly #links: readonly MonitorLink[];
  readonly #push: Push;
  readonly #api: Api;
  /** What is being asked, and is not yet answered. */
  readonly #asked = new Set<Promise<void>>();
  #isEnding = false;

  private constructor(options: WebOptions) {
    const { host, servers, tls } = options;
    this.#options = options;
    this.#sessions = new Sessions(host.random, host.clock, {
      cookieName: () => `livedisk-${this.#port()}`,
      isSecure: tls !== undefined,
    });
    this.#hostNames = tls ? namesOf(tls) : [];
    this.#limit = new RequestLimit(host.clock, REQUESTS);
    this.#push = new Push(host.clock, (count) => this.#watch(count > 0));
    const listener = {
      onState: (state: Parameters<Push['state']>[0]) => this.#push.state(state),
      onLog: (entry: Parameters<Push['entry']>[0]) => this.#push.entry(entry),
    };
    this.#links = servers.map(
      ({ name, address }) =>
        new MonitorLink({
          ...{ host, address, name, listener },
          lookAtFiles: (view) => options.lookAtFiles(name, view),
          readMap: (view, id) => options.readMap(name, view, id),
        }),
    );
    this.#api = new Api(this.#links, options);
    const answer = (request: IncomingMessage, response: ServerResponse): void => {
      this.#answer(request, response).catch((error: unknown) => {
        sendText(response, 500, `internal error: ${String(error)}`);
      });
    };
    this.#server = tls
      ? createSecureServer({ ...serverOptions(tls), ...SLOW_CLIENTS }, answer)
      : createServer(SLOW_CLIENTS, answer);
  }

  /** Errors: permission beyond this machine without TLS; invalid for its files; those of listening. */
  static async start(options: WebOptions): Promise<WebServer> {
    const { address, tls } = options;
    if (address.type !== 'inet') throw new BlockError('invalid', 'a page needs HOST:PORT');
    if (!isLoopback(address) && !tls)
      throw new BlockError(
        'permission',
        'beyond this machine the page is only served with --tls-creds, to clients with a certificate',
        { hint: 'Or use 127.0.0.1, and a tunnel (ssh -L) from elsewhere.' },
      );
    const server = new WebServer(options);
    await listen(server.#server, options.address);
    return server;
  }

  /** Where to go, with the token that is good once. */
  get url(): string {
    const { address, tls } = this.#options;
    const bound = address.type === 'inet' ? address.host : '';
    const isAny = ['0.0.0.0', '::', '*', ''].includes(bound);
    const plain = bound.includes(':') ? `[${bound}]` : bound;
    const host = tls && (isAny || !isLoopback(address)) ? (this.#hostNames[0] ?? plain) : plain;
    return `${tls ? 'https' : 'http'}://${host}:${this.#port()}/?token=${this.#sessions.token}`;
  }

  #port(): number {
    const bound = this.#server.address();
    return typeof bound === 'object' ? (bound?.port ?? 0) : 0;
  }

  /** What asks each server, by its name, for whoever counts: monitors are held for the answers alone. */
  get executes(): Map<string, Execute> {
    return new Map(
      this.#links.map((link) => [
        link.name,
        (command, args = {}) => link.hold((client) => client.execute(command, args)),
      ]),
    );
  }

  async close(): Promise<void> {
    this.#watch(false, 0);
    this.#push.close();
    const closed = new Promise((resolve) => this.#server.close(resolve));
    await this.#lastAnswers();
    for (const link of this.#links) link.close();
    this.#server.closeAllConnections();
    await closed;
  }

  /** A plan is not left half done because the page ends. */
  async #lastAnswers(): Promise<void> {
    this.#isEnding = true;
    const patience = deferred();
    const timer = this.#options.host.clock.setTimer(LAST_MS, () => patience.resolve());
    await Promise.race([Promise.all(this.#asked), patience.promise]);
    timer.cancel();
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
    const { tls } = this.#options;
    if (tls && !isAuthorised(request.socket, tls))
      return sendText(response, 403, 'this certificate may not come in');
    const refusal = refusalOf(request, { hostNames: this.#hostNames, isSecure: tls !== undefined });
    if (refusal) return sendText(response, refusal.status, refusal.text);
    const url = request.url ?? '/';
    if (!URL.canParse(url, ORIGIN)) return sendText(response, 400, 'that is no address');
    const { pathname, searchParams } = new URL(url, ORIGIN);
    const token = searchParams.get('token');
    if (pathname === '/' && token !== null && request.method === 'GET')
      return this.#login(token, request, response);
    const session = this.#sessions.find(request);
    if (session === undefined)
      return sendText(response, 401, 'Open the address that "livedisk web" printed; it is good once.');
    if (!this.#limit.take(session)) return sendText(response, 429, 'too many requests; wait a second');
    if (this.#isEnding) return sendText(response, 503, 'livedisk web is ending');
    if (request.method === 'POST') return this.#tracked(this.#post(pathname, request, response));
    const isHead = request.method === 'HEAD';
    if (isHead && pathname === '/api/events') return sendText(response, 405, 'a stream has no head apart');
    if (pathname === '/api/events') return this.#stream(request, session, response);
    this.#get(pathname, response);
  }

  /** The token goes from the address by the redirection; the page never sees it. */
  #login(token: string, { headers }: IncomingMessage, response: ServerResponse): void {
    const login = this.#sessions.login(token);
    if (login === 'wait') return sendText(response, 429, 'too many tokens were tried; wait a minute');
    if (login === 'wrong')
      return sendText(
        response,
        401,
        'This address is not good any more: start "livedisk web" again for another.',
      );
    response.setHeader('set-cookie', login.cookie);
    if (/^(?:cross|same)-site$/.test(String(headers['sec-fetch-site']))) {
      // The redirection of a link of another site is its request still, which no strict cookie goes along with.
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
      send(response, GO_ON);
      return;
    }
    response.writeHead(303, { location: '/' });
    response.end();
  }

  #get(pathname: string, response: ServerResponse): void {
    if (pathname === '/api/log') {
      response.writeHead(200, {
        'content-type': 'application/x-ndjson; charset=utf-8',
        'content-disposition': 'attachment; filename="livedisk-log.jsonl"',
      });
      sendLines(response, this.#push.log);
      return;
    }
    const file = this.#options.page.get(pathname === '/' ? '/index.html' : pathname);
    if (!file) return sendText(response, 404, 'there is no such page');
    response.writeHead(200, { 'content-type': file.type });
    send(response, file.body);
  }

  #stream({ headers }: IncomingMessage, session: string, response: ServerResponse): void {
    const { isReadOnly, hasConsole } = this.#options;
    // Scripts send no such header.
    const browser = headers['sec-fetch-site'] === undefined ? undefined : session;
    const names = this.#links.map(({ name }) => name);
    response.setHeader('content-type', 'text/event-stream; charset=utf-8');
    if (!this.#push.add(response, { servers: names, isReadOnly, hasConsole }, browser))
      sendText(response, 503, 'too many watch already');
  }

  async #tracked(asked: Promise<void>): Promise<void> {
    const settled = asked.catch(() => undefined);
    this.#asked.add(settled);
    await asked.finally(() => this.#asked.delete(settled));
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
