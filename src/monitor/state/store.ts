import { writeBuffer } from '../../host/whole-buffers.js';
import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { BlockError, toBlockError } from '../../base/error.js';
import { IoVector } from '../../base/io-vector.js';
import { MiB } from '../../base/limits.js';
import type { Host, HostFile } from '../../host/host.js';
import { EngineState, STATE_VERSION } from '../../schema/state.js';
import { parseJson } from '../../wire/qmp/json-parser.js';

/** Ten thousand images have ten megabytes. */
const MAX_STATE_BYTES = 256 * MiB;
const MAX_HEADER_BYTES = 200;
const LOCK_BYTE = 0;

/**
 * The folder of a daemon's state: `state`, which is replaced as a whole, and `lock`, which the daemon holds. `state` is a
 * line with the version, the length and the SHA-256 of what follows, and that: JSON (EngineState).
 */
export class StateStore {
  readonly folder: string;
  readonly #path: string;
  readonly #host: Host;
  readonly #lock: HostFile;
  #isClosed = false;

  private constructor(host: Host, folder: string, lock: HostFile) {
    this.#host = host;
    this.folder = folder;
    this.#path = `${folder}/state`;
    this.#lock = lock;
  }

  /** Makes the folder where nothing is. Errors: busy, when another daemon has it; permission, when others may see into it. */
  static async open(host: Host, folder: string): Promise<StateStore> {
    const stat = await host.files.stat(folder);
    if (!stat) {
      await host.files.mkdir(folder, { isPrivate: true });
    } else if (!stat.isDirectory) {
      throw new BlockError('invalid', `The state is kept in a folder, and '${folder}' is none`);
    } else if (!stat.isPrivate) {
      const text = `Others than you may look into '${folder}': the state is kept in a folder of mode 0700 that is yours`;
      throw new BlockError('permission', text);
    }
    // Also where it is there: who made it may have been killed just then. A disk that is only to be read has what it has.
    await host.files.syncDirectory(dirname(folder)).catch((error: unknown) => {
      if (!stat) throw error;
    });
    const lock = await openLock(host, `${folder}/lock`);
    if (lock.lockByteShared(LOCK_BYTE) && !lock.isByteLockedByOther(LOCK_BYTE))
      return new StateStore(host, folder, lock);
    await lock.close();
    throw new BlockError('busy', `Another daemon keeps its state in '${folder}'`);
  }

  /** The folder of a process whose place is taken; its lock comes with the file. Errors: those of the file. */
  static async adopt(host: Host, folder: string, descriptor: number): Promise<StateStore> {
    const lock = await host.files.open(`${folder}/lock`, { write: true, descriptor });
    return new StateStore(host, folder, lock);
  }

  /** To be passed to another process. */
  get lock(): HostFile {
    return this.#lock;
  }

  /** What was kept last; undefined: nothing was. Errors: unsupported, for another version; corrupt; those of the file. */
  async read(): Promise<EngineState | undefined> {
    if (!(await this.#host.files.stat(this.#path))) return undefined;
    const file = await this.#host.files.open(this.#path, { write: false });
    try {
      const lengthBytes = file.sizeBytes();
      if (lengthBytes > MAX_STATE_BYTES) throw this.#broken('it is too long');
      const bytes = Buffer.alloc(lengthBytes);
      await file.read(0, IoVector.of(bytes), 0, lengthBytes);
      return this.#decode(bytes);
    } finally {
      await file.close();
    }
  }

  #decode(bytes: Buffer): EngineState {
    const end = bytes.subarray(0, MAX_HEADER_BYTES).indexOf('\n');
    const header = bytes.toString('latin1', 0, Math.max(end, 0));
    const [, version, length, digest] =
      /^livedisk-state (\d{1,9}) (\d{1,12}) ([0-9a-f]{64})$/.exec(header) ?? [];
    if (version === undefined) throw this.#broken('it does not begin as one');
    if (Number(version) !== STATE_VERSION) {
      const age = Number(version) > STATE_VERSION ? 'a newer' : 'an older';
      const text = `The state '${this.#path}' is of version ${version}, of ${age} livedisk: this one has version ${STATE_VERSION}`;
      throw new BlockError('unsupported', text);
    }
    const body = bytes.subarray(end + 1);
    if (body.length !== Number(length)) throw this.#broken(`it has ${body.length} bytes and not ${length}`);
    if (digestOf(body) !== digest) throw this.#broken('it is not what was written');
    try {
      return EngineState.parse(parseJson(body.toString('utf8')), '', 'qmp');
    } catch (error) {
      throw this.#broken(error instanceof Error ? error.message : String(error));
    }
  }

  #broken(why: string): BlockError {
    return new BlockError('corrupt', `The state '${this.#path}' is broken: ${why}`);
  }

  /** Keeps a state in the place of the one before: durable on return; a crash at any moment leaves one of both. */
  async write(text: string): Promise<void> {
    if (this.#isClosed) return;
    const { files } = this.#host;
    const next = `${this.#path}.new`;
    try {
      const body = Buffer.from(text);
      const header = `livedisk-state ${STATE_VERSION} ${body.length} ${digestOf(body)}\n`;
      const bytes = Buffer.concat([Buffer.from(header), body]);
      const file = await files.open(next, { write: true, create: true, truncate: true, isPrivate: true });
      try {
        await writeBuffer(file, 0, bytes);
        await file.flush();
      } finally {
        await file.close();
      }
      await files.rename(next, this.#path);
      await files.syncDirectory(this.folder);
    } catch (error) {
      const { kind, message, errno } = toBlockError(error);
      const cause = { cause: error, ...(errno !== undefined && { errno }) };
      throw new BlockError(kind, `The state in '${this.folder}' could not be written: ${message}`, cause);
    }
  }

  /** What is kept stays, and another daemon may have it. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#lock.close();
  }
}

/** A file system may have become one to be read only since, as of a broken disk: to hold the lock it need not be written. */
async function openLock({ files }: Host, path: string): Promise<HostFile> {
  try {
    return await files.open(path, { write: true, create: true, isPrivate: true });
  } catch (error) {
    if (toBlockError(error).errno !== 'EROFS' || !(await files.stat(path))) throw error;
    return files.open(path, { write: false });
  }
}

function digestOf(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
