import { assert } from '../../src/base/assert.js';
import { createImage } from '../../src/block/create.js';
import { Graph } from '../../src/block/graph.js';
import type { Node } from '../../src/block/node.js';
import { Opener } from '../../src/block/open.js';
import { allDrivers } from '../../src/drivers/index.js';
import type { Host } from '../../src/host/host.js';
import { Disk } from '../../src/library/disk.js';
import { Engine } from '../../src/monitor/engine.js';
import { absoluteFrom, readPointFile } from '../../src/monitor/points/point-file.js';
import { type PointsTarget, targetOver } from '../../src/programs/points/targets.js';
import type { CommandArguments, CommandResult } from '../../src/schema/commands.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { textOf } from '../../src/view/answers.js';
import { DISK_BYTES, recordsIn } from './point-model.js';

export type Listed = CommandResult<'x-point-list'>['disks'][number];

/** Where new images lie now and then. */
export const OTHER_FOLDER = '/tmp/other';

/** Disks that one process has open, with a guest's handle of each. */
export class PointDisks {
  readonly engine: Engine;
  readonly host: Host;
  readonly #disks: Disk[] = [];
  /** Ends of deletions, of all points that were told. */
  readonly ended: Array<{ name: string; error: string | undefined }> = [];

  private constructor(host: Host) {
    this.host = host;
    this.engine = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
    this.engine.onEvent((event, data) => {
      if (event !== 'x-point-deleted') return;
      this.ended.push({ name: textOf(data['name']) ?? '', error: textOf(data['error']) });
    });
  }

  static async make(host: Host, images: readonly string[]): Promise<void> {
    const maker = new Engine({ host, drivers: allDrivers, kind: 'storage-daemon' });
    for (const image of images)
      await createImage(maker.opener, image, 'qcow2', {
        ...{ sizeBytes: DISK_BYTES, options: { 'cluster-size': 4096 } },
      });
    await host.files.mkdir(OTHER_FOLDER);
    await host.files.syncDirectory('/tmp');
    await maker.close();
  }

  /** Each by what is told to be its active image. */
  static async open(host: Host, images: readonly string[]): Promise<PointDisks> {
    const disks = new PointDisks(host);
    const { engine } = disks;
    for (const image of images) {
      const active = await disks.#activeOf(image);
      const node = await engine.opener.openImage(active, 'qcow2', { readOnly: false, discard: 'unmap' });
      disks.#disks.push(await Disk.open(engine.graph, node, { writable: true }));
    }
    return disks;
  }

  async #activeOf(image: string): Promise<string> {
    const { opener, graph } = this.engine;
    const node = await opener.openImage(image, 'qcow2', { readOnly: true });
    const reader = await Disk.open(graph, node, {});
    const elsewhere = (await this.#listOf(reader))['active-elsewhere'];
    await reader.close();
    await graph.release([node]);
    return elsewhere === undefined ? image : this.#activeOf(elsewhere);
  }

  get count(): number {
    return this.#disks.length;
  }

  disk(index: number): Disk {
    const disk = this.#disks[index];
    assert(disk !== undefined, () => `no disk ${index}`);
    return disk;
  }

  execute(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.engine.hub.execute(command, args) as Promise<JsonValue>;
  }

  /** Somebody who works on them by plain QMP alone. */
  manager(): Promise<PointsTarget> {
    const { engine } = this;
    return targetOver(
      this.host,
      {
        execute: async (command, args = {}) => {
          const answer = await this.execute(command, args);
          if (command !== 'query-commands') return answer;
          return (answer as Array<{ name: string }>).filter(({ name }) => !name.startsWith('x-point'));
        },
        onEvent: (listener) => engine.onEvent((event, data) => listener(event, data)),
        ended: engine.ended,
        close: () => Promise.resolve(),
      },
      '/tmp',
    );
  }

  /** Livedisk's own command, or the same by plain QMP. */
  send<N extends 'x-point-create' | 'x-point-delete' | 'x-point-revert'>(
    target: PointsTarget | undefined,
    name: N,
    args: CommandArguments<N>,
  ): Promise<ReturnType<PointsTarget['create']> extends Promise<infer T> ? T : never> {
    if (!target) return this.execute(name, args) as never;
    const verbs = {
      'x-point-create': 'create',
      'x-point-delete': 'delete',
      'x-point-revert': 'revert',
    } as const;
    return target[verbs[name]](args as never) as never;
  }

  /** Images of a disk's chain, top first. */
  layers(index: number): Node[] {
    const layers: Node[] = [];
    const { graph } = this.engine;
    for (
      let node: Node | undefined = graph.node(this.disk(index).nodeName).skipFilters();
      node;
      node = node.backingNode()
    )
      layers.push(node);
    return layers;
  }

  async #listOf(disk: Disk): Promise<Listed> {
    const node = this.engine.graph.node(disk.nodeName).skipFilters().name;
    const { disks } = await this.engine.execute('x-point-list', { nodes: [node] });
    const [listed] = disks;
    assert(listed !== undefined, 'a disk is not listed');
    return listed;
  }

  /** The disk's active image as its points file has it. */
  async knownActive(index: number): Promise<string[]> {
    const path = (await this.list(index))['points-file'];
    if (path === undefined) return [];
    const { active, pending } = (await readPointFile(this.host, path)).content;
    return [active, ...(pending ? [pending.overlay] : [])].map((file) => absoluteFrom(path, file));
  }

  list(index: number): Promise<Listed> {
    return this.#listOf(this.disk(index));
  }

  content(index: number): Promise<number[]> {
    return contentOf(this.disk(index));
  }

  async contentOfNode(name: string): Promise<number[]> {
    const { graph } = this.engine;
    await using disk = await Disk.open(graph, graph.node(name), {});
    return await contentOf(disk);
  }

  /** Of an image that need not be open. */
  async contentOfFile(path: string): Promise<number[]> {
    const graph = new Graph(this.host);
    const opener = new Opener(graph, this.engine.opener.drivers);
    const node = await opener.openImage(path, 'qcow2', { readOnly: true, forceShare: true });
    try {
      await using disk = await Disk.open(graph, node, {});
      return await contentOf(disk);
    } finally {
      await graph.release([node]);
    }
  }

  /** While nobody may write to these. */
  async whileReadOnly(indices: readonly number[], body: () => Promise<void>): Promise<void> {
    const { graph } = this.engine;
    for (const index of indices) {
      const reader = await Disk.open(graph, graph.node(this.disk(index).nodeName), {});
      await this.disk(index).close();
      this.#disks[index] = reader;
    }
    try {
      await body();
    } finally {
      for (const index of indices) {
        const writer = await Disk.open(graph, graph.node(this.disk(index).nodeName), { writable: true });
        await this.disk(index).close();
        this.#disks[index] = writer;
      }
    }
  }

  /** Waits until no deletion runs or waits. */
  async untilIdle(): Promise<void> {
    while (await this.isDeleting()) await this.host.clock.sleep(5);
  }

  async isDeleting(): Promise<boolean> {
    return (await this.engine.execute('x-point-list', { nodes: [] })).queue.length > 0;
  }

  async untilNoJob(): Promise<void> {
    while ((await this.engine.execute('query-jobs', {})).length > 0) await this.host.clock.sleep(5);
  }

  close(): Promise<void> {
    return this.engine.close();
  }
}

async function contentOf(disk: Disk): Promise<number[]> {
  const bytes = Buffer.alloc(DISK_BYTES);
  await disk.read(0, bytes);
  return recordsIn(bytes);
}
