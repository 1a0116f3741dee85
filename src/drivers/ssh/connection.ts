import { type Deferred, deferred } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { Host, HostProgram } from '../../host/host.js';
import { SftpClient } from '../../wire/sftp/client.js';
import { checkFingerprint, endReason, fingerprintIn, sshCommand, type SshPlace } from './address.js';

/** What is kept of what ssh says. */
const MAX_TEXT_CHARS = 16_384;

/** An `ssh` program that talks SFTP with a server. When it ends, everything fails. */
export class SshConnection {
  readonly client: SftpClient;
  readonly #program: HostProgram;
  readonly #settings: SshPlace;
  readonly #isKnown: Deferred<void> = deferred();
  #text = '';

  private constructor(host: Host, settings: SshPlace) {
    const { pipes } = host;
    if (!pipes) throw new BlockError('unsupported', 'This machine has no programs');
    this.#settings = settings;
    this.#isKnown.promise.catch(() => undefined);
    this.client = new SftpClient((bytes) => this.#program.write(bytes));
    this.#program = pipes.talk(sshCommand(settings), {
      onData: (chunk) => this.client.receive(chunk),
      onErrorText: (chunk) => this.#heard(chunk),
      onEnd: (how) => this.#ended(how),
    });
    if (settings['host-key-check']?.mode !== 'hash') this.#isKnown.resolve();
  }

  /** Errors: those of the connection, in QEMU's words. */
  static async open(host: Host, settings: SshPlace): Promise<SshConnection> {
    const connection = new SshConnection(host, settings);
    try {
      await connection.#isKnown.promise;
      await connection.client.start();
      return connection;
    } catch (error) {
      connection.close();
      throw error;
    }
  }

  close(): void {
    this.client.end(new BlockError('cancelled', 'Operation canceled', { errno: 'ECANCELED' }));
    this.#program.destroy();
  }

  #heard(chunk: Buffer): void {
    this.#text = `${this.#text}${chunk.toString()}`.slice(-MAX_TEXT_CHARS);
    const fingerprint = fingerprintIn(this.#text);
    if (!fingerprint) return;
    try {
      checkFingerprint(fingerprint, this.#settings['host-key-check']);
      this.#isKnown.resolve();
    } catch (error) {
      this.#isKnown.reject(error);
    }
  }

  #ended(how: BlockError): void {
    const error = endReason(this.#text, this.#settings) ?? how;
    const text = error === how ? `The ssh program has ended: ${how.message}` : error.message;
    const failure = new BlockError(error.kind, text, { errno: 'EIO', cause: how });
    this.#isKnown.reject(failure);
    this.client.end(failure);
  }
}
