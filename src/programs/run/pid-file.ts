import { BlockError, toBlockError } from '../../base/error.js';
import type { Host, HostFile } from '../../host/host.js';
import { onceLetGo } from '../../monitor/takeover/let-go.js';
import { writeBuffer } from '../../host/whole-buffers.js';

/** The file that says which process serves. It is locked meanwhile, so that a second one leaves it alone. */
export class PidFile {
  readonly #host: Host;
  readonly #path: string;
  readonly #file: HostFile;

  private constructor(host: Host, path: string, file: HostFile) {
    this.#host = host;
    this.#path = path;
    this.#file = file;
  }

  /** Errors: "cannot create PID file: ..."; a file that another process holds stays as it is. */
  static async create(host: Host, path: string, pid: number): Promise<PidFile> {
    try {
      return new PidFile(host, path, await writeLocked(host, path, pid));
    } catch (error) {
      const { kind, message } = toBlockError(error);
      throw new BlockError(kind, `cannot create PID file: ${message}`, { cause: error });
    }
  }

  /**
   * The same after a process whose place this one has taken. Errors: as of create.
   */
  static takeOver(host: Host, path: string, pid: number): Promise<PidFile> {
    return onceLetGo(host.clock, () => PidFile.create(host, path, pid));
  }

  async remove(): Promise<void> {
    await this.#host.files.unlink(this.#path).catch(() => undefined);
    await this.#file.close();
  }
}

/** A new file comes with its number in it, so that whoever waits for it may read it at once. */
async function writeLocked(host: Host, path: string, pid: number): Promise<HostFile> {
  const beside = `${path}.${pid}`;
  const isNew = (await host.files.stat(path)) === undefined;
  const file = isNew ? await writeNew(host, beside, pid).catch(() => undefined) : undefined;
  if (!file) return writeOver(host, path, pid);
  try {
    await host.files.link(beside, path);
    return file;
  } catch {
    // Somebody else's has come meanwhile, or the file system has no second names.
    await file.close();
    return await writeOver(host, path, pid);
  } finally {
    await host.files.unlink(beside);
  }
}

async function writeNew(host: Host, path: string, pid: number): Promise<HostFile> {
  return writeTo(await host.files.open(path, { write: true, create: true, exclusive: true }), pid);
}

async function writeOver(host: Host, path: string, pid: number): Promise<HostFile> {
  return writeTo(await host.files.open(path, { write: true, create: true }), pid);
}

async function writeTo(file: HostFile, pid: number): Promise<HostFile> {
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
