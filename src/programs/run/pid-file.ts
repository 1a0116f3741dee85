import { BlockError, toBlockError } from '../../base/error.js';
import type { Host, HostFile } from '../../host/host.js';
import { writeBuffer } from '../../host/whole-buffers.js';

/** The file that says which process serves. It is locked meanwhile, so that a second one leaves it alone. */
export class PidFile {
  readonly #host: Host;
  readonly #file: HostFile;

  private constructor(host: Host, file: HostFile) {
    this.#host = host;
    this.#file = file;
  }

  /** Errors: "cannot create PID file: ..."; a file that another process holds stays as it is. */
  static async create(host: Host, path: string, pid: number): Promise<PidFile> {
    try {
      return new PidFile(host, await writeLocked(host, path, pid));
    } catch (error) {
      const { kind, message } = toBlockError(error);
      throw new BlockError(kind, `cannot create PID file: ${message}`, { cause: error });
    }
  }

  async remove(): Promise<void> {
    await this.#host.files.unlink(this.#file.path).catch(() => undefined);
    await this.#file.close();
  }
}

async function writeLocked(host: Host, path: string, pid: number): Promise<HostFile> {
  const file = await host.files.open(path, { write: true, create: true });
  try {
    if (!file.lockByteShared(0) || file.isByteLockedByOther(0))
      throw new BlockError('busy', 'Cannot lock pid file: Resource temporarily unavailable');
    const text = Buffer.from(`${pid}\n`);
    await writeBuffer(file, 0, text);
    await file.truncate(text.length);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}
