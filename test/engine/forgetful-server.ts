import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Deferred, deferred } from '../../src/base/async.js';
import { createImage } from '../../src/block/create.js';
import { createRealHost } from '../../src/host/real.js';
import { Relay } from '../kit/relay.js';
import { DISK_BYTES, EngineBed } from './engine-bed.js';

/** An NBD server of an export T, which can be lost with all that it was not told to keep. */
export class ForgetfulServer {
  /** Where clients find it. */
  readonly socket: string;
  /** Of the image that it has. */
  readonly path: string;
  readonly #relay: Relay;
  #kept: Buffer;
  #held: Deferred<void> | undefined;

  private constructor(path: string, socket: string, relay: Relay) {
    this.path = path;
    this.socket = socket;
    this.#relay = relay;
    this.#kept = readFileSync(path);
  }

  /** Its socket is in `folder`. */
  static async start(t: TestContext, folder: string, format: 'raw' | 'qcow2'): Promise<ForgetfulServer> {
    const [here, there] = [join(folder, 'here'), join(folder, 'there')];
    const relay = new Relay(createRealHost(), { type: 'unix', path: here }, { type: 'unix', path: there });
    await relay.open();
    t.after(() => relay.close());
    const bed = new EngineBed(t);
    const path = bed.path('T');
    writeFileSync(path, '');
    if (format === 'raw') truncateSync(path, DISK_BYTES);
    else {
      await createImage(bed.engine.opener, path, 'qcow2', { sizeBytes: DISK_BYTES });
      truncateSync(path, 2 * DISK_BYTES);
    }
    const file = { driver: 'file', filename: path };
    await bed.engine.addNode({ driver: 'raw', 'node-name': 'T', file });
    await bed.execute('nbd-server-start', { addr: { type: 'unix', data: { path: there } } });
    await bed.execute('block-export-add', {
      ...{ type: 'nbd', id: 'e', 'node-name': 'T', name: 'T', writable: true },
    });
    const server = new ForgetfulServer(path, here, relay);
    server.#watchFlushes(bed);
    return server;
  }

  #watchFlushes({ engine }: EngineBed): void {
    const onDisk = engine.graph.node('T').child('file').node.instance;
    const flush = onDisk.flush?.bind(onDisk);
    onDisk.flush = async () => {
      await this.#held?.promise;
      await flush?.();
      this.#kept = readFileSync(this.path);
    };
  }

  /** It is lost, and is there again without what it was not told to keep. */
  readonly lose = (): void => {
    this.#relay.setDown(true);
    const fd = openSync(this.path, 'r+');
    writeSync(fd, this.#kept);
    closeSync(fd);
    this.#held?.resolve();
    this.#held = undefined;
    this.#relay.setDown(false);
  };

  /** Its connections are, and it is what it was. */
  readonly cut = (): void => {
    this.#relay.setDown(true);
    this.#relay.setDown(false);
  };

  /** Flushes wait until that happens. */
  readonly holdFlushes = (): void => {
    this.#held = deferred();
  };
}
