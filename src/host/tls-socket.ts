import type stream from 'node:stream';
import type tls from 'node:tls';
import { assert } from '../base/assert.js';
import { BlockError, toBlockError } from '../base/error.js';
import type { HostSocket, SocketHandler, TlsEnd } from './host.js';

/** Pre-shared keys are agreed upon as TLS 1.2 has them: GnuTLS and OpenSSL differ in how 1.3 does. */
const SHARED_KEY_CIPHERS = 'kECDHEPSK:kPSK';

const nodeTls = (): typeof tls => process.getBuiltinModule('node:tls');

/** Speaks TLS over a socket that nobody has started. Errors: kind permission, when the ends do not accept each other. */
export async function secureSocket(inner: HostSocket, end: TlsEnd): Promise<HostSocket> {
  const carrier = carry(inner);
  try {
    const socket = await (end.isServer ? accepted(carrier, end) : connected(carrier, end));
    const allowed = await (end.isAllowed?.(identityOf(socket)) ?? true);
    if (allowed) return new TlsSocket(socket, inner);
    throw new BlockError('permission', `TLS x509 authz check for ${identityOf(socket)} is denied`);
  } catch (error) {
    carrier.destroy();
    inner.destroy();
    throw error;
  }
}

function accepted(carrier: stream.Duplex, end: TlsEnd): Promise<tls.TLSSocket> {
  const { sharedKeys, verifiesPeer } = end;
  const server = nodeTls().createServer({
    ...material(end),
    requestCert: verifiesPeer && !sharedKeys,
    // Looked at below, where it can be told why.
    rejectUnauthorized: false,
    ...(sharedKeys && {
      pskCallback: (_socket: tls.TLSSocket, identity: string) => sharedKeys.get(identity) ?? null,
    }),
  });
  return new Promise((resolve, reject) => {
    server.once('secureConnection', (socket) => {
      const isTrusted = !verifiesPeer || sharedKeys !== undefined || socket.authorized;
      if (isTrusted) resolve(socket);
      else reject(failed(new Error(String(socket.authorizationError))));
    });
    server.once('tlsClientError', (error: Error) => reject(failed(error)));
    // What is wrong with TLS itself is told a little later.
    carrier.once('close', () => setImmediate(() => reject(failed(new Error('the connection was closed')))));
    server.emit('connection', carrier);
  });
}

function connected(carrier: stream.Duplex, end: TlsEnd): Promise<tls.TLSSocket> {
  const { sharedKeys, verifiesPeer, hostname, userName = '' } = end;
  const psk = sharedKeys?.get(userName);
  const socket = nodeTls().connect({
    ...material(end),
    socket: carrier,
    rejectUnauthorized: verifiesPeer && !sharedKeys,
    ...(hostname === undefined || sharedKeys
      ? { checkServerIdentity: () => undefined }
      : { servername: /^[\d.]+$|:/.test(hostname) ? '' : hostname, host: hostname }),
    ...(psk && { pskCallback: () => ({ psk, identity: userName }) }),
  });
  return new Promise((resolve, reject) => {
    socket.once('secureConnect', () => resolve(socket));
    socket.once('error', (error) => reject(failed(error as Error)));
    socket.once('close', () => reject(failed(new Error('the connection was closed'))));
  });
}

function material({ ca, crl, certificate, key, passphrase, sharedKeys }: TlsEnd): tls.SecureContextOptions {
  if (sharedKeys) return { ciphers: SHARED_KEY_CIPHERS, maxVersion: 'TLSv1.2' };
  return {
    ...(ca && { ca }),
    ...(crl && { crl }),
    ...(certificate && { cert: certificate }),
    ...(key && { key }),
    ...(passphrase !== undefined && { passphrase }),
  };
}

function failed(error: Error): BlockError {
  return new BlockError('permission', `TLS handshake failed: ${error.message}`, { cause: error });
}

/** The distinguished name as RFC 4514 writes it, most special part first; empty without a certificate. */
function identityOf(socket: tls.TLSSocket): string {
  const subject = socket.getPeerX509Certificate()?.subject ?? '';
  return subject
    .split('\n')
    .reverse()
    .map((part) => {
      const equals = part.indexOf('=');
      const value = part.slice(equals + 1).replace(/[,+"\\<>;]/g, '\\$&');
      return `${part.slice(0, equals + 1)}${value}`;
    })
    .join(',');
}

/** A socket as a stream of Node's, which its TLS can use. */
function carry(inner: HostSocket): stream.Duplex {
  const { Duplex } = process.getBuiltinModule('node:stream');
  let written: (() => void) | undefined;
  const carrier = new Duplex({
    read: () => inner.resume(),
    write: (chunk: Buffer, _encoding, done) => {
      if (inner.write(chunk) === 'sent') done();
      else written = done;
    },
    final: (done) => {
      inner.end();
      done();
    },
    destroy: (error, done) => {
      inner.destroy();
      done(error);
    },
  });
  inner.start({
    // The chunk is only lent.
    onData: (chunk) => {
      if (!carrier.push(Buffer.from(chunk))) inner.pause();
    },
    onClose: () => {
      carrier.push(null);
      carrier.destroy();
    },
    onDrain: () => {
      const done = written;
      written = undefined;
      done?.();
    },
  });
  return carrier;
}

/** A connection that is encrypted from here on. */
class TlsSocket implements HostSocket {
  readonly #socket: tls.TLSSocket;
  readonly #inner: HostSocket;
  #handler: SocketHandler | undefined;
  #error: Error | undefined;
  #isClosed = false;
  #isEnded = false;
  #owesDrain = false;

  constructor(socket: tls.TLSSocket, inner: HostSocket) {
    this.#socket = socket;
    this.#inner = inner;
    socket.pause();
    socket.on('error', (error) => (this.#error ??= toBlockError(error)));
    socket.on('close', () => this.#closed());
    socket.on('end', () => this.#socket.destroy());
  }

  start(handler: SocketHandler): void {
    assert(!this.#handler, 'socket was started twice');
    this.#handler = handler;
    this.#socket.on('data', (chunk: Buffer) => {
      if (!this.#isClosed) handler.onData(chunk);
    });
    if (this.#isClosed) setImmediate(() => handler.onClose(this.#error));
    else this.#socket.resume();
  }

  write(buffer: Uint8Array): 'sent' | 'queued' {
    if (this.#isEnded || this.#socket.destroyed || buffer.length === 0) return 'sent';
    this.#socket.write(buffer, this.#wrote);
    if (this.#socket.writableLength === 0) return 'sent';
    this.#owesDrain = true;
    return 'queued';
  }

  get queuedBytes(): number {
    return this.#socket.destroyed ? 0 : this.#socket.writableLength + this.#inner.queuedBytes;
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  end(): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#socket.end(() => this.#socket.destroy());
  }

  destroy(): void {
    this.#isEnded = true;
    this.#socket.destroy();
    this.#inner.destroy();
  }

  isPeerGone(): boolean {
    return this.#isClosed || this.#inner.isPeerGone();
  }

  shutDown(): Promise<void> {
    this.#isEnded = true;
    const gone = this.#inner.shutDown();
    this.#socket.destroy();
    return gone;
  }

  readonly #wrote = (): void => {
    if (!this.#owesDrain || this.#socket.writableLength > 0 || this.#socket.destroyed) return;
    this.#owesDrain = false;
    if (!this.#isClosed) this.#handler?.onDrain?.();
  };

  #closed(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#inner.destroy();
    this.#handler?.onClose(this.#error);
  }
}
