import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { MiB } from '../../src/base/limits.js';
import type { Host, SocketAddress } from '../../src/host/host.js';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { NbdClient } from '../../src/wire/nbd/client.js';
import { BlockWriters, type Timed } from './block-writers.js';
import { RecordPair, recordOn } from './record-pair.js';

export const DISK_BYTES = 64 * MiB;
/** Behind what the writers use. */
const RECORD_OFFSET = DISK_BYTES - MiB;
const BLOCKS = 4096;
const DEPTH = 32;
const MAX_LAYERS = 50;
const KEPT_LAYERS = 10;
const DISKS = [0, 1] as const;

/** A server with nodes `disk0.0` and `disk1.0`, images of `folder` of these names. */
export interface LoadedServer {
  readonly host: Host;
  readonly folder: string;
  /** Where it serves NBD. */
  readonly nbd: SocketAddress;
  execute(command: string, args: JsonObject): Promise<JsonValue>;
  /** Errors: the job's own. */
  ended(jobId: string): Promise<void>;
}

/** How long guests' writes took while something was done, in milliseconds. */
export type Stalls = Map<string, number[]>;

export interface LoadResult {
  readonly stalls: Stalls;
  readonly writes: number;
  readonly layersSeen: number;
}

/**
 * Writers at depth 32 on a disk, and records on two, while snapshots of both in one transaction, reopens and transactions of
 * bitmaps follow one another, and commits keep the chains short. Errors: of a guest's request, a lost or torn write, a pair
 * of snapshots whose second disk is ahead.
 */
export async function runLoad(
  server: LoadedServer,
  rounds: number,
  below: (bound: number) => number,
): Promise<LoadResult> {
  const load = new Load(server, below);
  await load.start();
  for (let round = 1; round <= rounds; round++) await load.round(round);
  return load.end();
}

class Load {
  readonly #server: LoadedServer;
  readonly #below: (bound: number) => number;
  readonly #clients: NbdClient[] = [];
  readonly #stalls: Stalls = new Map();
  /** Names of layers, the base first, of each disk. */
  readonly #layers: [string[], string[]] = [['disk0.0'], ['disk1.0']];
  #writers!: BlockWriters;
  #records!: RecordPair;
  #layersSeen = 0;

  constructor(server: LoadedServer, below: (bound: number) => number) {
    this.#server = server;
    this.#below = below;
  }

  async start(): Promise<void> {
    for (const disk of DISKS) {
      const node = `disk${disk}.0`;
      await this.#do('block-export-add', {
        id: `disk${disk}`,
        'node-name': node,
        name: `disk${disk}`,
        ...EXPORT,
      });
    }
    const [first, second] = [await this.#connect('disk0'), await this.#connect('disk1')];
    const { clock } = this.#server.host;
    this.#writers = new BlockWriters(await this.#connect('disk0'), clock, BLOCKS, this.#below);
    this.#records = new RecordPair([first, second], RECORD_OFFSET);
    this.#writers.start(DEPTH);
    this.#records.start();
  }

  async #connect(exportName: string): Promise<NbdClient> {
    const { host, nbd } = this.#server;
    const client = await NbdClient.connect({ host, address: nbd, exportName });
    this.#clients.push(client);
    return client;
  }

  async round(round: number): Promise<void> {
    // What a write takes anyway, on this machine and now.
    await this.#timed('nothing', () => this.#rest());
    await this.#snapshot(round);
    await this.#comparePair();
    await this.#reopen(round);
    await this.#bitmaps();
    this.#writers.check();
    const [layers] = this.#layers;
    this.#layersSeen = Math.max(this.#layersSeen, layers.length);
    assert.ok(layers.length < MAX_LAYERS, `${layers.length} layers`);
    // Nothing else may be done to the disk meanwhile.
    if (layers.length > MAX_LAYERS / 2) for (const disk of DISKS) await this.#commit(disk);
  }

  async #snapshot(round: number): Promise<void> {
    const actions = DISKS.map((disk) => {
      const overlay = `disk${disk}.${round}`;
      const data = {
        ...{ 'node-name': this.#top(disk), 'snapshot-node-name': overlay, format: 'qcow2' },
        'snapshot-file': join(this.#server.folder, overlay),
      };
      return { type: 'blockdev-snapshot-sync', data };
    });
    await this.#timed('snapshots of two disks', () => this.#do('transaction', { actions }));
    for (const disk of DISKS) this.#layers[disk].push(`disk${disk}.${round}`);
  }

  #top(disk: 0 | 1): string {
    return this.#layers[disk].at(-1) ?? '';
  }

  /** What both disks held at their snapshots. */
  async #comparePair(): Promise<void> {
    const numbers: number[] = [];
    for (const disk of DISKS) {
      const id = `frozen${disk}`;
      const node = this.#layers[disk].at(-2) ?? '';
      await this.#do('block-export-add', { id, 'node-name': node, name: id, type: 'nbd' });
      const client = await NbdClient.connect({
        ...{ host: this.#server.host, address: this.#server.nbd },
        exportName: id,
      });
      numbers.push(await recordOn(client, RECORD_OFFSET));
      await client.close();
      await this.#do('block-export-del', { id, mode: 'hard' });
    }
    const [first = 0, second = 0] = numbers;
    assert.ok(second === first || second === first - 1, `disk 1 holds record ${first}, disk 2 ${second}`);
  }

  async #reopen(round: number): Promise<void> {
    const [layers] = this.#layers;
    const options = {
      ...{ driver: 'qcow2', 'node-name': this.#top(0), backing: layers.at(-2) ?? '' },
      file: { driver: 'file', filename: join(this.#server.folder, this.#top(0)) },
      'detect-zeroes': round % 2 === 0 ? 'on' : 'off',
    };
    await this.#timed('reopen', () => this.#do('blockdev-reopen', { options: [options] }));
  }

  async #bitmaps(): Promise<void> {
    const node = this.#top(0);
    const of = (name: string): JsonObject => ({ node, name });
    const actions = [
      { type: 'block-dirty-bitmap-add', data: { ...of('a'), granularity: 65536 } },
      { type: 'block-dirty-bitmap-add', data: { ...of('b'), disabled: true } },
      { type: 'block-dirty-bitmap-clear', data: of('a') },
      { type: 'block-dirty-bitmap-enable', data: of('b') },
      { type: 'block-dirty-bitmap-merge', data: { node, target: 'b', bitmaps: ['a'] } },
    ];
    await this.#timed('transaction of bitmaps', () => this.#do('transaction', { actions }));
    const removals = ['a', 'b'].map((name) => ({ type: 'block-dirty-bitmap-remove', data: of(name) }));
    await this.#timed('transaction of bitmaps', () => this.#do('transaction', { actions: removals }));
  }

  /** The older layers go into the base. */
  async #commit(disk: 0 | 1): Promise<void> {
    const layers = this.#layers[disk];
    const [base = ''] = layers;
    const gone = layers.slice(1, -KEPT_LAYERS);
    const device = this.#top(disk);
    const job = { 'job-id': `commit${disk}`, device, 'base-node': base, 'top-node': gone.at(-1) ?? '' };
    // The job's start is short; how long it takes is its own affair.
    await this.#timed('start of a commit', () => this.#do('block-commit', job));
    await this.#server.ended(`commit${disk}`);
    layers.splice(1, gone.length);
    for (const name of gone) rmSync(join(this.#server.folder, name));
  }

  async #rest(): Promise<void> {
    const goal = this.#writers.count + 4 * DEPTH;
    while (this.#writers.count < goal) {
      this.#writers.check();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Of what is done, the longest write that was under way meanwhile. */
  async #timed(what: string, body: () => Promise<unknown>): Promise<void> {
    const { clock } = this.#server.host;
    this.#writers.ended = [];
    const fromMs = clock.nowMs();
    await body();
    const toMs = clock.nowMs();
    // Those that were under way end now.
    const goal = this.#writers.count + 2 * DEPTH;
    while (this.#writers.count < goal) {
      this.#writers.check();
      await new Promise((resolve) => setImmediate(resolve));
    }
    const overlaps = (write: Timed): boolean => write.toMs > fromMs && write.fromMs < toMs;
    const longest = Math.max(
      0,
      ...this.#writers.ended.filter(overlaps).map((write) => write.toMs - write.fromMs),
    );
    const stalls = this.#stalls.get(what) ?? [];
    stalls.push(longest);
    this.#stalls.set(what, stalls);
  }

  #do(command: string, args: JsonObject): Promise<JsonValue> {
    return this.#server.execute(command, args);
  }

  async end(): Promise<LoadResult> {
    await this.#writers.stop();
    await this.#records.stop();
    for (const client of this.#clients) await client.close();
    for (const disk of DISKS) await this.#do('block-export-del', { id: `disk${disk}`, mode: 'hard' });
    return { stalls: this.#stalls, writes: this.#writers.count, layersSeen: this.#layersSeen };
  }
}

const EXPORT = { type: 'nbd', writable: true } as const;

/** The value that so many hundredths of the sorted ones do not exceed. */
export function percentile(values: readonly number[], hundredths: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil((sorted.length * hundredths) / 100) - 1)] ?? 0;
}
