import type { IncomingMessage } from 'node:http';
import { isLocalName } from './access.js';

/** How a request is turned away. */
export interface Refusal {
  readonly status: number;
  readonly text: string;
}

export interface GuardOptions {
  /** Names beside the machine's own that a Host header may say: where the server is bound elsewhere. */
  readonly hostNames: readonly string[];
  readonly isSecure: boolean;
}

const PAGE = /^\/(?:\?|$)/;
const BODY_TYPE = /^application\/json(?:\s*;|$)/i;

/**
 * Keeps pages of other sites out: they can make a browser send requests here, but not with our name and our origin.
 * Whether the session is good is another question.
 */
export function refusalOf(
  request: IncomingMessage,
  { hostNames, isSecure }: GuardOptions,
): Refusal | undefined {
  const { host, origin } = request.headers;
  const [, name = ''] = /^(.*?)(?::\d{1,5})?$/.exec(host ?? '') ?? [];
  if (!isLocalName(host) && !hostNames.includes(name.toLowerCase()))
    return { status: 421, text: 'this is not the server of that name' };
  const site = request.headers['sec-fetch-site'] ?? 'same-origin';
  const isPost = request.method === 'POST';
  // A link that is followed from elsewhere, or an address that is typed, is only ever a GET, of a page where it is another site's.
  const isOwn = site === 'same-origin' || (!isPost && site === 'none');
  if (!isOwn && (isPost || !PAGE.test(request.url ?? '')))
    return { status: 403, text: 'requests of other sites are not served' };
  if (isPost && !isOwnOrigin(origin, host, isSecure))
    return { status: 403, text: 'the Origin must be this server' };
  if (!isPost && origin !== undefined && !isOwnOrigin(origin, host, isSecure))
    return { status: 403, text: 'requests of other sites are not served' };
  if (isPost && !BODY_TYPE.test(request.headers['content-type'] ?? ''))
    return { status: 415, text: 'a body is application/json' };
  if (!['GET', 'HEAD', 'POST'].includes(request.method ?? ''))
    return { status: 405, text: 'GET or POST only' };
  return undefined;
}

function isOwnOrigin(origin: string | undefined, host: string | undefined, isSecure: boolean): boolean {
  return host !== undefined && origin === `${isSecure ? 'https' : 'http'}://${host}`;
}

/** Sent with every answer. */
export const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy':
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'cache-control': 'no-store',
};
