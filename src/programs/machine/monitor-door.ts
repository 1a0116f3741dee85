import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deferred } from '../../base/async.js';
import type { HostClock, HostListener, HostNet, HostSocket } from '../../host/host.js';
import { QmpClient } from '../../wire/qmp/client.js';

/** Until it says that it is there; a loaded machine takes a while. */
const GREETING_MS = 120_000;

/** Where the guest's program comes with its monitor, once: in a folder that nobody else sees. */
export class MonitorDoor {
  readonly path: string;
  readonly #folder: string;
  readonly #came = deferred<HostSocket>();
  #listener: HostListener | undefined;

  private constructor() {
    this.#folder = mkdtempSync(join(tmpdir(), 'livedisk-machine-'));
    this.path = join(this.#folder, 'monitor');
  }

  /** Errors: those of listening. */
  static async open(net: HostNet): Promise<MonitorDoor> {
    const door = new MonitorDoor();
    try {
      const address = { type: 'unix', path: door.path } as const;
      door.#listener = await net.listen(address, (socket) => door.#came.resolve(socket));
      return door;
    } catch (error) {
      await door.close();
      throw error;
    }
  }

  /** Errors: those of QmpClient.over. */
  async client(clock: HostClock): Promise<QmpClient> {
    return QmpClient.over(await this.#came.promise, clock, { timeoutMs: GREETING_MS });
  }

  async close(): Promise<void> {
    await this.#listener?.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
