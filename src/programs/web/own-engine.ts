import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Host, HostListener, SocketAddress } from '../../host/host.js';
import type { Engine } from '../../monitor/engine.js';
import { QmpSession } from '../../wire/qmp/session.js';
import { composeEngine, startProperties } from '../run/compose.js';
import { Ending } from '../run/ending.js';
import { parseRunOptions } from '../run/options.js';
import { start } from '../run/start.js';

/** What an engine in the page's own process takes, as qemu-storage-daemon does. In the order in which they are done. */
export const ENGINE_OPTIONS = ['object', 'nbd-server', 'blockdev', 'export'] as const;

export type EngineWords = Readonly<Partial<Record<(typeof ENGINE_OPTIONS)[number], string[]>>>;

/** An engine in this process, whose monitor is a socket in a folder that nobody else may enter. */
export class OwnEngine {
  readonly address: SocketAddress;
  readonly #engine: Engine;
  readonly #folder: string;
  readonly #ending: Ending;
  readonly #listener: HostListener;

  private constructor(engine: Engine, folder: string, address: SocketAddress, listener: HostListener) {
    this.#engine = engine;
    this.#folder = folder;
    this.address = address;
    this.#listener = listener;
    this.#ending = new Ending(engine, 'livedisk web');
  }

  /** Errors: those of its options, naming them; all is closed then. */
  static async start(host: Host, words: EngineWords): Promise<OwnEngine> {
    const args = ENGINE_OPTIONS.flatMap((name) =>
      (words[name] ?? []).flatMap((value) => [`--${name}`, value]),
    );
    const warn = (text: string): void => void process.stderr.write(`livedisk web: ${text}\n`);
    const options = parseRunOptions(args, 'storage-daemon');
    const engine = composeEngine(host, 'storage-daemon', startProperties(options), warn);
    const folder = mkdtempSync(join(tmpdir(), 'livedisk-web-'));
    try {
      await start(engine, options);
      const address: SocketAddress = { type: 'unix', path: join(folder, 'qmp.sock') };
      const listener = await host.net.listen(address, (socket) => void new QmpSession(engine.hub, socket));
      return new OwnEngine(engine, folder, address, listener);
    } catch (error) {
      rmSync(folder, { recursive: true, force: true });
      await engine.close();
      throw error;
    }
  }

  /** Until a signal, or `quit`. */
  get isOver(): Promise<void> {
    return this.#engine.quitting.promise;
  }

  /** Everything is flushed and closed. Errors: those of closing images. */
  async close(): Promise<void> {
    const cleanUp = async (): Promise<void> => rmSync(this.#folder, { recursive: true, force: true });
    try {
      await this.#listener.close();
      await this.#ending.close(cleanUp);
    } finally {
      await cleanUp();
    }
  }
}
