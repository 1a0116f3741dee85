import { BlockError } from '../../base/error.js';
import type {
  DriverContext,
  DriverInfo,
  DriverInstance,
  PreparedChange,
  Reopening,
} from '../../block/driver.js';
import { type SftpHandle, SftpError } from '../../wire/sftp/client.js';
import { OpenFlag } from '../../wire/sftp/codec.js';
import type { SshSettings } from './address.js';
import { SshConnection } from './connection.js';
import { SshIo } from './io.js';

/** A file of a machine that is reached over SSH. */
export class SshNode implements DriverInstance {
  readonly io: SshIo;
  readonly requestAlignmentBytes = 1;
  readonly #connection: SshConnection;
  readonly #settings: SshSettings;
  #noFlush: boolean;

  private constructor(connection: SshConnection, io: SshIo, settings: SshSettings) {
    this.#connection = connection;
    this.io = io;
    this.#settings = settings;
    this.#noFlush = settings.cache['no-flush'];
  }

  /** Errors: those of the connection and the file, in QEMU's words. */
  static async open(context: DriverContext, settings: SshSettings): Promise<SshNode> {
    const connection = await SshConnection.open(context.host, settings);
    try {
      const { client } = connection;
      const handle = await openFile(connection, settings.path, flags(context.readOnly));
      const io = new SshIo(client, handle, await client.sizeOf(handle), context);
      if (!context.readOnly && !client.canFlush) {
        context.warn(`ssh server ${settings.server.host}:${settings.server.port} does not support fsync`);
      }
      return new SshNode(connection, io, settings);
    } catch (error) {
      connection.close();
      throw error;
    }
  }

  get lengthBytes(): number {
    return this.io.lengthBytes;
  }

  /** Of a server that cannot, as by QEMU, nothing is asked: opening it has warned. */
  async flush(): Promise<void> {
    if (!this.#noFlush && this.#connection.client.canFlush) await this.io.flush();
  }

  async truncate(lengthBytes: number): Promise<void> {
    if (lengthBytes < this.lengthBytes)
      throw new BlockError('unsupported', 'ssh driver does not support shrinking files');
    await this.io.extend(lengthBytes);
  }

  async prepareReadOnly(readOnly: boolean): Promise<PreparedChange> {
    const { client } = this.#connection;
    const handle = await openFile(this.#connection, this.#settings.path, flags(readOnly));
    const close = (old: SftpHandle): void => void client.close(old).catch(() => undefined);
    return {
      commit: () => {
        close(this.io.handle);
        this.io.handle = handle;
      },
      abort: () => close(handle),
    };
  }

  async prepareReopen({ settings, readOnly }: Reopening): Promise<PreparedChange> {
    const change = await this.prepareReadOnly(readOnly);
    return {
      commit: () => {
        change.commit();
        this.#noFlush = settings.cache['no-flush'];
      },
      abort: () => change.abort(),
    };
  }

  info(): DriverInfo {
    return { hasNoDirtyFlag: true };
  }

  cancelInFlight(): void {
    this.#connection.close();
  }

  yank(): void {
    this.#connection.close();
  }

  async close(): Promise<void> {
    await this.#connection.client.close(this.io.handle).catch(() => undefined);
    this.#connection.close();
  }
}

function flags(readOnly: boolean): number {
  return readOnly ? OpenFlag.read : OpenFlag.read + OpenFlag.write;
}

/** Errors: in QEMU's words. */
export async function openFile(
  { client }: SshConnection,
  path: string,
  openFlags: number,
): Promise<SftpHandle> {
  try {
    return await client.open(path, openFlags);
  } catch (error) {
    if (!(error instanceof SftpError)) throw error;
    const why = `${error.message} (libssh error code: 1, sftp error code: ${error.code})`;
    throw new BlockError(error.kind, `failed to open remote file '${path}': ${why}`, { cause: error });
  }
}
