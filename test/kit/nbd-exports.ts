import { fileDriver } from '../../src/drivers/file/index.js';
import { NbdServer } from '../../src/wire/nbd/server.js';
import { TestBed } from './test-disk.js';

/** A server on a unix socket in a test's folder, whose exports are new files on the test's host. */
export class NbdExports {
  readonly socketPath: string;
  readonly #bed: TestBed;
  readonly #closers: Array<() => Promise<void>> = [];
  #server: NbdServer | undefined;

  constructor(bed: TestBed) {
    this.#bed = new TestBed(bed.host, [fileDriver], bed.folder);
    this.socketPath = bed.newPath('socket');
  }

  /** Exports a new disk that reads as zeroes, for writing. */
  async add(name: string, sizeBytes: number): Promise<void> {
    const filename = `${this.socketPath}.${name}.raw`;
    await fileDriver.createFile?.(this.#bed.host, filename, sizeBytes);
    const disk = await this.#bed.open({ driver: 'file', filename });
    this.#closers.push(() => disk.close());
    this.#server ??= await NbdServer.listen(this.#bed.host, { type: 'unix', path: this.socketPath });
    this.#server.addExport({ name, target: disk.backend, readOnly: false, multiConn: true });
  }

  async close(): Promise<void> {
    await this.#server?.close();
    for (const close of this.#closers) await close();
  }
}
