import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { BlockError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { Graph } from '../../block/graph.js';
import { Opener } from '../../block/open.js';
import { ALL_PERMISSIONS, Permission } from '../../block/permissions.js';
import { DriverRegistry } from '../../block/registry.js';
import type { NodeOptions } from '../../block/driver.js';
import { allDrivers } from '../../drivers/index.js';
import type { Host, SocketAddress } from '../../host/host.js';
import { QmpClient, type QmpEvent } from '../../wire/qmp/client.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';

export const QMP_SOCKET = 'qmp.sock';
export const DISK_SOCKET = 'disk.sock';
export const DEVICE = 'virtio0';
/** For a daemon that hangs: one that has ended is noticed at once, and a busy machine takes its time to start one. */
const START_TIMEOUT_MS = 60_000;

/** Images and disks that the demo itself opens. */
export class Bench {
  readonly #graph: Graph;
  readonly opener: Opener;

  constructor(host: Host) {
    this.#graph = new Graph(host);
    this.opener = new Opener(this.#graph, new DriverRegistry(allDrivers));
  }

  /** Opens a disk; close() of the answer ends its use. */
  async open(
    options: NodeOptions,
    readOnly: boolean,
  ): Promise<{ disk: BlockBackend; close: () => Promise<void> }> {
    const graph = this.#graph;
    const node = await this.opener.open(options, { readOnly });
    const perm = Permission.consistentRead | (readOnly ? 0 : Permission.write);
    const disk = graph.createBackend({ description: 'the demo', perm, shared: ALL_PERMISSIONS });
    await graph.transaction((transaction) => void transaction.attach(disk, 'root', node));
    const close = async (): Promise<void> => {
      const { root } = disk;
      if (root) await graph.transaction((transaction) => transaction.detach(root));
      await graph.collect([node]);
    };
    return { disk, close };
  }
}

/** A `livedisk run` in a process of its own, and a QMP client of it. */
export class DemoDaemon {
  readonly #process: ChildProcess;
  readonly qmp: QmpClient;
  readonly exited: Promise<number | null>;
  readonly #seen: QmpEvent[] = [];
  #wake: () => void = () => undefined;

  private constructor(process: ChildProcess, qmp: QmpClient, exited: Promise<number | null>) {
    this.#process = process;
    this.qmp = qmp;
    this.exited = exited;
    qmp.onEvent((event) => {
      this.#seen.push(event);
      this.#wake();
    });
  }

  /** The words that start it again by hand in the demo's folder. */
  static words(image: string): string[] {
    return [
      'run',
      '-blockdev',
      `driver=qcow2,node-name=node-A,file.driver=file,file.filename=${image}`,
      '-device',
      `virtio-blk,drive=node-A,id=${DEVICE},x-endpoint=unix:${DISK_SOCKET}`,
      '-qmp',
      `unix:${QMP_SOCKET},server=on,wait=off`,
    ];
  }

  static async start(host: Host, folder: string, image: string): Promise<DemoDaemon> {
    const program = process.argv[1] ?? '';
    const child = spawn(process.execPath, [program, ...DemoDaemon.words(image)], {
      cwd: folder,
      stdio: ['ignore', 'ignore', 'inherit'],
      // A terminal's Ctrl-C is for the demo, whose guest stops before its disk goes.
      detached: true,
    });
    process.once('exit', () => child.kill('SIGKILL'));
    const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
    const failed = new Promise<never>((_, reject) => child.on('error', reject));
    try {
      const connecting = connectSoon(host, { type: 'unix', path: join(folder, QMP_SOCKET) }, child);
      const qmp = await Promise.race([connecting, failed]);
      return new DemoDaemon(child, qmp, exited);
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
  }

  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.qmp.execute(command, args);
  }

  /** Whether that event of that job has come. */
  hasSeen(name: string, jobId: string): boolean {
    return this.find(name, jobId) !== undefined;
  }

  find(name: string, jobId: string): QmpEvent | undefined {
    return this.#seen.find(({ event, data }) => event === name && data['device'] === jobId);
  }

  /** Calls `listener` with every event from now on. */
  onEvent(listener: (event: QmpEvent) => void): void {
    this.qmp.onEvent(listener);
  }

  /** Until the next event, or for a while. */
  async nextEvent(host: Host, atMostMs: number): Promise<void> {
    await Promise.race([new Promise<void>((resolve) => (this.#wake = resolve)), host.clock.sleep(atMostMs)]);
  }

  async quit(): Promise<void> {
    await this.execute('quit').catch(() => undefined);
    const code = await this.exited;
    if (code !== 0) throw new BlockError('io', `the daemon ended with status ${code}`);
  }

  kill(): void {
    this.#process.kill('SIGKILL');
  }
}

async function connectSoon(host: Host, address: SocketAddress, child: ChildProcess): Promise<QmpClient> {
  const end = host.clock.nowMs() + START_TIMEOUT_MS;
  for (;;) {
    try {
      return await QmpClient.connect(host, address);
    } catch (error) {
      if (child.exitCode !== null || host.clock.nowMs() > end) throw error;
      await host.clock.sleep(20);
    }
  }
}
