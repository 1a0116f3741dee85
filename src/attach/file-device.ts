import { BlockError } from '../base/error.js';
import { IoVector } from '../base/io-vector.js';
import type { Host, HostFile } from '../host/host.js';
import { SinkDevice } from './character-device.js';

/** What is written goes to a file. */
export class FileDevice extends SinkDevice {
  readonly filename = 'file';
  readonly #file: HostFile;
  #position: number;
  #written: Promise<void> = Promise.resolve();

  private constructor(id: string, file: HostFile) {
    super(id);
    this.#file = file;
    this.#position = file.sizeBytes();
  }

  /** Errors: those of opening, in the words for a log. */
  static async log(id: string, { files }: Host, path: string, isAppended: boolean): Promise<FileDevice> {
    return new FileDevice(id, await files.open(path, { write: true, create: true, truncate: !isAppended }));
  }

  /** Errors: those of opening. */
  static async open(id: string, host: Host, path: string, isAppended: boolean): Promise<FileDevice> {
    try {
      return await FileDevice.log(id, host, path, isAppended);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      const text = error.message.replace(/^Could not create/, 'Could not open');
      throw new BlockError(error.kind, text, { cause: error });
    }
  }

  write(bytes: Uint8Array): void {
    const memory = IoVector.of(Buffer.from(bytes));
    const position = this.#position;
    this.#position += bytes.length;
    // What cannot be written is lost, as it is to a terminal that is gone.
    this.#written = this.#written
      .then(() => this.#file.write(position, memory, 0, bytes.length))
      .catch((error: unknown) => {
        if (!(error instanceof BlockError)) throw error;
      });
  }

  override async close(): Promise<void> {
    await this.#written;
    await this.#file.close();
    await super.close();
  }
}
