import fs from 'node:fs';
import type http from 'node:http';
import type https from 'node:https';
import { BlockError, errnoError, toBlockError } from '../base/error.js';
import { KiB } from '../base/limits.js';
import type { HostHttp, HttpClient, HttpClientOptions, HttpHead, HttpQuestion, HttpTaker } from './http.js';

/** Whom the distributions trust (Debian, Fedora, SUSE); where none of these is, those that Node brings. */
const TRUSTED_FILES = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/ca-bundle.pem',
];
/** The rest of an answer that nobody takes is read only where it is so short: the connection can be used again then. */
const MAX_UNREAD_BYTES = 64 * KiB;

/** Loaded when they are first needed. */
const nodeHttp = (): typeof http => process.getBuiltinModule('node:http');
const nodeHttps = (): typeof https => process.getBuiltinModule('node:https');
const rootCertificates = (): readonly string[] => process.getBuiltinModule('node:tls').rootCertificates;

export class RealHttp implements HostHttp {
  client(options: HttpClientOptions): HttpClient {
    return new RealHttpClient(options);
  }
}

class RealHttpClient implements HttpClient {
  readonly #options: HttpClientOptions;
  #plain: http.Agent | undefined;
  #secure: https.Agent | undefined;
  readonly #inFlight = new Set<http.ClientRequest>();
  #isClosed = false;

  constructor(options: HttpClientOptions) {
    this.#options = options;
  }

  async request(question: HttpQuestion, onHead: (head: HttpHead) => HttpTaker | undefined): Promise<void> {
    for (;;) {
      if (this.#isClosed) throw errnoError('ECANCELED');
      const exchange = new Exchange(question, onHead);
      const outgoing = this.#start(question);
      this.#inFlight.add(outgoing);
      try {
        return await exchange.run(outgoing);
      } catch (error) {
        if (this.#isClosed) throw errnoError('ECANCELED', undefined, { cause: error });
        // The server had closed a connection that was at rest: nothing was answered, and nothing is wrong.
        if (exchange.isStale(outgoing)) continue;
        throw error;
      } finally {
        this.#inFlight.delete(outgoing);
      }
    }
  }

  #start({ method, url, headers, timeoutMs }: HttpQuestion): http.ClientRequest {
    const isSecure = url.protocol === 'https:';
    const options = {
      method,
      headers,
      timeout: timeoutMs,
      agent: isSecure ? this.#secureAgent() : this.#agent(),
    };
    return (isSecure ? nodeHttps() : nodeHttp()).request(url, options);
  }

  #agent(): http.Agent {
    return (this.#plain ??= new (nodeHttp().Agent)(this.#sockets()));
  }

  #secureAgent(): https.Agent {
    const { verifiesPeer } = this.#options;
    const ca = verifiesPeer ? trustedCertificates() : undefined;
    return (this.#secure ??= new (nodeHttps().Agent)({
      ...this.#sockets(),
      rejectUnauthorized: verifiesPeer,
      ...(ca && { ca }),
    }));
  }

  #sockets(): http.AgentOptions {
    return { keepAlive: true, maxSockets: this.#options.maxConnections };
  }

  close(): void {
    this.#isClosed = true;
    for (const outgoing of this.#inFlight) outgoing.destroy();
    this.#plain?.destroy();
    this.#secure?.destroy();
  }
}

/**
 * Whom the distribution trusts, and whom NODE_EXTRA_CA_CERTS names: Node adds these to its own alone. Errors: those of
 * reading the file that is named.
 */
function trustedCertificates(): Array<Buffer | string> | undefined {
  const usual = TRUSTED_FILES.find((file) => fs.existsSync(file));
  const more = process.env['NODE_EXTRA_CA_CERTS'] ?? '';
  if (usual === undefined && more === '') return undefined;
  const trusted = usual === undefined ? [...rootCertificates()] : [fs.readFileSync(usual)];
  if (more === '') return trusted;
  try {
    return [...trusted, fs.readFileSync(more)];
  } catch (error) {
    throw new BlockError('io', `NODE_EXTRA_CA_CERTS: cannot read '${more}'`, { cause: error });
  }
}

/** One question and its answer. */
class Exchange {
  readonly #question: HttpQuestion;
  readonly #onHead: (head: HttpHead) => HttpTaker | undefined;
  readonly #startedMs = performance.now();
  #isConnected = false;
  #isAnswered = false;
  #receivedBytes = 0;
  #cause: Error | undefined;

  constructor(question: HttpQuestion, onHead: (head: HttpHead) => HttpTaker | undefined) {
    this.#question = question;
    this.#onHead = onHead;
  }

  /** Whether it failed only because it was sent over a connection that had ended. */
  isStale(outgoing: http.ClientRequest): boolean {
    const code = this.#cause && 'code' in this.#cause ? this.#cause.code : undefined;
    return outgoing.reusedSocket && !this.#isAnswered && (code === 'ECONNRESET' || code === 'EPIPE');
  }

  run(outgoing: http.ClientRequest): Promise<void> {
    return new Promise((resolve, reject) => {
      const fail = (error: Error): void => {
        this.#cause ??= error;
        reject(this.#explain(error));
      };
      outgoing.once('socket', (socket) => {
        if (!socket.connecting) this.#isConnected = true;
        else socket.once('connect', () => (this.#isConnected = true));
      });
      outgoing.on('error', fail);
      outgoing.on('timeout', () => outgoing.destroy(this.#timeout()));
      outgoing.once('response', (response) => {
        this.#isAnswered = true;
        this.#receive(outgoing, response, resolve, fail);
      });
      outgoing.end();
    });
  }

  #receive(
    outgoing: http.ClientRequest,
    response: http.IncomingMessage,
    resolve: () => void,
    fail: (error: Error) => void,
  ): void {
    const guarded = (body: () => void): void => {
      try {
        body();
      } catch (error) {
        fail(error as Error);
        outgoing.destroy();
      }
    };
    response.on('error', (error) =>
      fail(this.#timedOut(outgoing) ?? cutShort(response, this.#receivedBytes, error)),
    );
    response.once('end', () => resolve());
    guarded(() => {
      const take = this.#onHead({ status: response.statusCode ?? 0, headers: singles(response.headers) });
      if (!take) {
        resolve();
        const lengthBytes = Number(response.headers['content-length'] ?? MAX_UNREAD_BYTES + 1);
        if (this.#question.method === 'HEAD' || lengthBytes <= MAX_UNREAD_BYTES) response.resume();
        else outgoing.destroy();
        return;
      }
      response.on('data', (chunk: Buffer) => {
        this.#receivedBytes += chunk.length;
        guarded(() => take(chunk));
      });
    });
  }

  #timedOut({ errored }: http.ClientRequest): BlockError | undefined {
    return errored instanceof BlockError ? errored : undefined;
  }

  #timeout(): BlockError {
    const afterMs = this.#elapsedMs();
    const text = this.#isConnected
      ? `Operation timed out after ${afterMs} milliseconds with ${this.#receivedBytes} bytes received`
      : `Failed to connect to ${this.#peer()} after ${afterMs} ms: Timeout was reached`;
    return new BlockError('timeout', text, { errno: 'ETIMEDOUT' });
  }

  #elapsedMs(): number {
    return Math.round(performance.now() - this.#startedMs);
  }

  #peer(): string {
    const { hostname, port, protocol } = this.#question.url;
    return `${hostname.replace(/[[\]]/g, '')} port ${port === '' ? (protocol === 'https:' ? 443 : 80) : port}`;
  }

  /** In curl's words. */
  #explain(error: Error): BlockError {
    if (error instanceof BlockError) return error;
    const { hostname } = this.#question.url;
    const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
    const say = (text: string, kind?: BlockError['kind']): BlockError =>
      new BlockError(kind ?? toBlockError(error).kind, text, { cause: error });
    if (code === 'ENOTFOUND' || code === 'EAI_AGAIN')
      return say(`Could not resolve host: ${hostname}`, 'not-found');
    const certificate = certificateText(code, error, hostname);
    if (certificate !== undefined) return say(certificate, 'permission');
    if (!this.#isConnected)
      return say(
        `Failed to connect to ${this.#peer()} after ${this.#elapsedMs()} ms: Couldn't connect to server`,
      );
    if (code === 'ECONNRESET' && error.message === 'socket hang up')
      return say('Empty reply from server', 'closed');
    if (code === 'ECONNRESET') return say('Recv failure: Connection reset by peer', 'closed');
    return say(tlsText(error) ?? error.message, 'io');
  }
}

function cutShort(response: http.IncomingMessage, receivedBytes: number, error: Error): BlockError {
  const all = response.headers['content-length'];
  const text =
    all === undefined
      ? 'transfer closed with outstanding read data remaining'
      : `transfer closed with ${Number(all) - receivedBytes} bytes remaining to read`;
  return new BlockError('closed', text, { cause: error });
}

/** As curl with GnuTLS has it; undefined: it is not the certificate. */
function certificateText(code: string, error: Error, hostname: string): string | undefined {
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID')
    return `SSL: certificate subject name does not match target hostname '${hostname}'`;
  if (/^(CERT_|CRL_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_)/.test(code))
    return `server certificate verification failed: ${error.message}`;
  return undefined;
}

/** OpenSSL's reason, which Node hides in a line with numbers. */
function tlsText(error: Error): string | undefined {
  if ('reason' in error && typeof error.reason === 'string') return error.reason;
  return /:SSL routines:[^:]*:([^:]+):/.exec(error.message)?.[1];
}

function singles(headers: http.IncomingHttpHeaders): Record<string, string | undefined> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, Array.isArray(value) ? value[0] : value]),
  );
}
