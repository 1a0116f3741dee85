import { BlockError } from '../../base/error.js';
import type { HttpClient, HttpHead, HttpTaker } from '../../host/http.js';

/** As many as curl follows. */
const MAX_REDIRECTS = 30;

export interface SourceOptions {
  client: HttpClient;
  url: URL;
  /** Only for the server that `url` names, wherever it leads. */
  headers: Readonly<Record<string, string>>;
  timeoutMs: number;
}

/** A file of a web server, of which ranges can be read (RFC 9110, section 14). Errors are in curl's words. */
export class HttpSource {
  readonly #options: SourceOptions;
  /** Where the last answer came from, when that was not the URL itself. */
  #place: URL | undefined;
  #lengthBytes = 0;
  #tag: string | undefined;

  private constructor(options: SourceOptions) {
    this.#options = options;
  }

  /** Errors: those of the connection; invalid where the server says no length, or knows no ranges. */
  static async open(options: SourceOptions): Promise<HttpSource> {
    const source = new HttpSource(options);
    await source.#ask('HEAD', {}, (head) => {
      checkStatus(head);
      source.#lengthBytes = lengthOf(head);
      source.#tag = tagOf(head);
      if (!/^\s*bytes\s*$/i.test(head.headers['accept-ranges'] ?? '')) throw noRanges();
      return undefined;
    });
    return source;
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  /** Hands over the bytes [start, end), in pieces that are only valid during the call. */
  async fetch(start: number, end: number, take: HttpTaker): Promise<void> {
    let missingBytes = end - start;
    await this.#ask('GET', { range: `bytes=${start}-${end - 1}` }, (head) => {
      checkStatus(head);
      this.#checkRange(head, start, end);
      return (chunk) => {
        missingBytes -= chunk.length;
        if (missingBytes < 0) throw wrongRange();
        take(chunk);
      };
    });
    if (missingBytes > 0) throw wrongRange();
  }

  /** Follows redirects, and keeps to where they led as long as that answers. */
  async #ask(
    method: 'GET' | 'HEAD',
    headers: Readonly<Record<string, string>>,
    onHead: (head: HttpHead) => HttpTaker | undefined,
  ): Promise<void> {
    if (this.#place) {
      const place = this.#place;
      let isGone = false;
      const answered = await this.#askAt(place, method, headers, (head) => {
        isGone = head.status >= 400 && head.status < 500;
        return isGone ? undefined : onHead(head);
      });
      if (!isGone) return this.#keep(answered);
      this.#place = undefined;
    }
    this.#keep(await this.#askAt(this.#options.url, method, headers, onHead));
  }

  #keep(place: URL): void {
    this.#place = place === this.#options.url ? undefined : place;
  }

  /** Answers where the answer came from. */
  async #askAt(
    from: URL,
    method: 'GET' | 'HEAD',
    headers: Readonly<Record<string, string>>,
    onHead: (head: HttpHead) => HttpTaker | undefined,
  ): Promise<URL> {
    const { client, timeoutMs, url: origin } = this.#options;
    let url = from;
    for (let hops = 0; hops <= MAX_REDIRECTS; hops++) {
      let next: URL | undefined;
      const own = url.origin === origin.origin ? this.#options.headers : {};
      const question = { method, url, timeoutMs, headers: { accept: '*/*', ...own, ...headers } };
      await client.request(question, (head) => {
        next = redirect(head, url);
        return next ? undefined : onHead(head);
      });
      if (!next) return url;
      url = next;
    }
    throw new BlockError('io', `Maximum (${MAX_REDIRECTS}) redirects followed`, { errno: 'EIO' });
  }

  #checkRange({ status, headers }: HttpHead, start: number, end: number): void {
    const coding = headers['content-encoding'];
    if (coding !== undefined && coding !== 'identity')
      throw failure(`The server encodes what it sends (${coding})`);
    const isWhole = status === 200 && start === 0 && end === this.#lengthBytes;
    if (status === 200 && !isWhole) throw noRanges();
    if (status === 206) {
      const [, first, last, total] =
        /^bytes (\d+)-(\d+)\/(\d+|\*)$/i.exec(headers['content-range'] ?? '') ?? [];
      if (Number(first) !== start || Number(last) !== end - 1) throw wrongRange();
      if (total !== '*' && Number(total) !== this.#lengthBytes) throw changed();
    } else if (!isWhole) throw failure(`The requested URL returned: ${status}`);
    const tag = tagOf({ status, headers });
    if (tag !== undefined && this.#tag !== undefined && tag !== this.#tag) throw changed();
  }
}

/** Where to go on; undefined: this is the answer. */
function redirect({ status, headers }: HttpHead, url: URL): URL | undefined {
  const { location } = headers;
  if (![301, 302, 303, 307, 308].includes(status) || location === undefined) return undefined;
  if (!URL.canParse(location, url.href)) throw failure('URL using bad/illegal format or missing URL');
  const next = new URL(location, url.href);
  const scheme = next.protocol.slice(0, -1);
  if (scheme !== 'http' && scheme !== 'https') throw failure(`Protocol "${scheme}" not supported`);
  next.username = next.password = '';
  return next;
}

function checkStatus({ status }: HttpHead): void {
  if (status >= 400) throw failure(`The requested URL returned error: ${status}`);
}

function lengthOf({ headers }: HttpHead): number {
  const text = headers['content-length'] ?? '';
  if (!/^\d+$/.test(text)) throw new BlockError('invalid', "Server didn't report file size.");
  return Number(text);
}

/** Of two files whose strong tags differ, the bytes differ. */
function tagOf({ headers }: HttpHead): string | undefined {
  return headers['etag']?.startsWith('"') === true ? headers['etag'] : undefined;
}

function noRanges(): BlockError {
  return failure("Server does not support 'range' (byte ranges).");
}

function wrongRange(): BlockError {
  return failure('The server has not sent the range that was asked for');
}

function changed(): BlockError {
  return failure('The file has changed on the server');
}

function failure(text: string): BlockError {
  return new BlockError('io', text, { errno: 'EIO' });
}
