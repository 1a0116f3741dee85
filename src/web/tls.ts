import { X509Certificate } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { type SecureContextOptions, TLSSocket, type TlsOptions } from 'node:tls';
import { BlockError } from '../base/error.js';

/** What the page's server shows, and whom it lets in; PEM. */
export interface WebTls {
  readonly certificate: Buffer;
  readonly key: Buffer;
  /** Whose signatures clients' certificates need. */
  readonly authority: Buffer;
  readonly revoked?: Buffer;
  /** Common names of clients that are let in; none given: all that the authority has signed. */
  readonly clients: readonly string[];
}

/** Errors: invalid, for what is no certificate or key. */
export function serverOptions({ certificate, key, authority, revoked }: WebTls): TlsOptions {
  const context: SecureContextOptions = {
    ...{ cert: certificate, key, ca: authority, minVersion: 'TLSv1.2' },
    ...(revoked && { crl: revoked }),
  };
  return { ...context, requestCert: true, rejectUnauthorized: true };
}

/** The names that the certificate is for, which are those that a Host header may say. Errors: invalid. */
export function namesOf({ certificate }: Pick<WebTls, 'certificate'>): string[] {
  let names: string | undefined;
  try {
    names = new X509Certificate(certificate).subjectAltName;
  } catch (error) {
    throw new BlockError('invalid', "the page's certificate cannot be read", { cause: error });
  }
  return (names ?? '').split(', ').flatMap((name) => {
    const [, text] = /^(?:DNS|IP Address):(.+)$/.exec(name) ?? [];
    if (text === undefined) return [];
    return [(text.includes(':') ? `[${shortAddress(text)}]` : text).toLowerCase()];
  });
}

/** An IPv6 address as browsers write it. */
function shortAddress(text: string): string {
  return new URL(`http://[${text}]/`).hostname.slice(1, -1);
}

/** Whether one who has shown a good certificate is among those that may come in. */
export function isAuthorised(
  socket: IncomingMessage['socket'],
  { clients }: Pick<WebTls, 'clients'>,
): boolean {
  if (!(socket instanceof TLSSocket) || !socket.authorized) return false;
  // A session that is resumed has the certificate of the first one.
  const { subject } = socket.getPeerCertificate() as { subject?: { CN?: string | string[] } };
  const names = [subject?.CN ?? []].flat();
  return clients.length === 0 || names.some((name) => clients.includes(name));
}
