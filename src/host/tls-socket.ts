import type net from 'node:net';
import type tls from 'node:tls';
import { assert } from '../base/assert.js';
import { BlockError, toBlockError } from '../base/error.js';
import type { HostSocket, SocketHandler, TlsEnd } from './host.js';
import type { RealSocket } from './real-socket.js';
import { distinguishedName } from './distinguished-name.js';
import { StreamWriter } from './stream-writer.js';

/** Pre-shared keys are agreed upon as TLS 1.2 has them: GnuTLS and OpenSSL differ in how 1.3 does. */
const SHARED_KEY_CIPHERS = 'kECDHEPSK:kPSK';

/** How long a peer that is not wanted may take to hang up. */
const DISMISSAL_MS = 1000;

const nodeTls = (): typeof tls => process.getBuiltinModule('node:tls');

/** See HostNet.secure. */
export async function secureSocket(inner: RealSocket, raw: net.Socket, end: TlsEnd): Promise<HostSocket> {
  try {
    const socket = await (end.isServer ? accepted(raw, inner, end) : connected(raw, inner, end));
    if (end.isAllowed) {
      const identity = socket.peerName();
      if (identity === '')
        throw new BlockError(
          'permission',
          'Cannot get client distinguished name: The requested data were not available.',
        );
      if (!(await end.isAllowed(identity)))
        throw new BlockError('permission', `TLS x509 authz check for ${identity} is denied`);
    }
    return socket;
  } catch (error) {
    await dismiss(inner);
    inner.destroy();
    throw error;
  }
}

/** A peer that is not wanted hears the end of the handshake first, and that it is over: no reset overtakes it. */
async function dismiss(inner: RealSocket): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
  await inner.shutDown(DISMISSAL_MS);
}

function accepted(raw: net.Socket, inner: RealSocket, end: TlsEnd): Promise<TlsSocket> {
  const { sharedKeys, verifiesPeer } = end;
  return new Promise((resolve, reject) => {
    const server = nodeTls().createServer({
      ...material(end),
      requestCert: verifiesPeer && !sharedKeys,
      // Looked at below, where it can be told why.
      rejectUnauthorized: false,
      ...(sharedKeys && {
        pskCallback: (_socket: tls.TLSSocket, identity: string) => sharedKeys.get(identity) ?? null,
      }),
    });
    server.once('secureConnection', (socket) => {
      const isTrusted = !verifiesPeer || sharedKeys !== undefined || socket.authorized;
      if (isTrusted) resolve(new TlsSocket(socket, inner));
      else reject(untrusted(socket));
    });
    server.once('tlsClientError', (error: Error) => reject(failed(error)));
    // What is wrong with TLS itself is told a little later.
    raw.once('close', () => setImmediate(() => reject(failed(new Error('the connection was closed')))));
    if (raw.destroyed) return reject(failed(new Error('the connection was closed')));
    server.emit('connection', raw);
  });
}

function connected(raw: net.Socket, inner: RealSocket, end: TlsEnd): Promise<TlsSocket> {
  const { sharedKeys, verifiesPeer, hostname, userName = '' } = end;
  const psk = sharedKeys?.get(userName);
  return new Promise((resolve, reject) => {
    if (raw.destroyed) return reject(failed(new Error('the connection was closed')));
    const socket = nodeTls().connect({
      ...material(end),
      socket: raw,
      // Looked at below, where it can be told why.
      rejectUnauthorized: false,
      ...(hostname === undefined || sharedKeys
        ? { checkServerIdentity: () => undefined }
        : { servername: /^[\d.]+$|:/.test(hostname) ? '' : hostname, host: hostname }),
      ...(psk && { pskCallback: () => ({ psk, identity: userName }) }),
    });
    socket.once('secureConnect', () => {
      const isTrusted = !verifiesPeer || sharedKeys !== undefined || socket.authorized;
      if (isTrusted) resolve(new TlsSocket(socket, inner));
      else reject(untrusted(socket, hostname));
    });
    socket.once('error', (error) => reject(failed(error as Error)));
    socket.once('close', () => reject(failed(new Error('the connection was closed'))));
  });
}

function material(end: TlsEnd): tls.SecureContextOptions {
  const { ca, crl, certificate, key, passphrase, dhParameters, sharedKeys } = end;
  if (sharedKeys) return { ciphers: SHARED_KEY_CIPHERS, maxVersion: 'TLSv1.2' };
  return {
    ...(ca && { ca }),
    ...(crl && { crl }),
    ...(certificate && { cert: certificate }),
    ...(key && { key }),
    ...(passphrase !== undefined && { passphrase }),
    ...(dhParameters && { dhparam: dhParameters }),
  };
}

function failed(error: Error): BlockError {
  // OpenSSL's message is a line with numbers for its authors. What is usual is told in GnuTLS's words, as by QEMU.
  let text = 'reason' in error && typeof error.reason === 'string' ? error.reason : error.message.trim();
  if (/\balert\b/.test(text)) text = 'A TLS fatal alert has been received.';
  else if ('code' in error && error.code === 'ECONNRESET')
    text = 'The TLS connection was non-properly terminated.';
  return new BlockError('permission', `TLS handshake failed: ${text}`, { cause: error });
}

/** In GnuTLS's words where it is usual to have them. */
function untrusted(socket: tls.TLSSocket, hostname?: string): BlockError {
  const why = String(socket.authorizationError);
  if (!socket.getPeerX509Certificate())
    return new BlockError('permission', 'Verify failed: No certificate was found.');
  const texts: Readonly<Record<string, string>> = {
    CERT_HAS_EXPIRED: 'The certificate has expired',
    CERT_REVOKED: 'The certificate has been revoked',
    ERR_TLS_CERT_ALTNAME_INVALID: `Certificate does not match the hostname ${hostname ?? ''}`,
  };
  return new BlockError('permission', texts[why] ?? "The certificate hasn't got a known issuer", {
    cause: new Error(why),
  });
}

/** A connection that is encrypted from here on. */
class TlsSocket implements HostSocket {
  readonly #socket: tls.TLSSocket;
  readonly #inner: RealSocket;
  #handler: SocketHandler | undefined;
  #error: Error | undefined;
  #isClosed = false;
  #isEnded = false;
  readonly #writer: StreamWriter;

  constructor(socket: tls.TLSSocket, inner: RealSocket) {
    this.#socket = socket;
    this.#writer = new StreamWriter(socket, () => {
      if (!this.#isClosed) this.#handler?.onDrain?.();
    });
    this.#inner = inner;
    socket.pause();
    socket.on('error', (error) => (this.#error ??= toBlockError(error)));
    socket.on('close', () => this.#closed());
  }

  /** Whose certificate the peer has shown; empty without one. */
  peerName(): string {
    const certificate = this.#socket.getPeerX509Certificate();
    return certificate ? distinguishedName(certificate.raw) : '';
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
    return this.#isEnded ? 'sent' : this.#writer.write(buffer);
  }

  get queuedBytes(): number {
    return this.#writer.queuedBytes;
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

  #closed(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#inner.destroy();
    this.#handler?.onClose(this.#error);
  }
}
