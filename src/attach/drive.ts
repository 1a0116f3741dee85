import type { BlockBackend } from '../block/backend.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import { IntervalStatistics } from '../block/interval-statistics.js';
import type { ErrorAction } from './device.js';

export const DRIVE_INTERFACES = [
  'none',
  'ide',
  'scsi',
  'floppy',
  'pflash',
  'mtd',
  'sd',
  'virtio',
  'xen',
] as const;
export type DriveInterface = (typeof DRIVE_INTERFACES)[number];

/** Where a drive sits on its interface, and what it asks of the device that takes it. */
export interface DriveProperties {
  id: string;
  interface: DriveInterface;
  bus: number;
  unit: number;
  isCdrom: boolean;
  /** Every write is durable when it completes. */
  writethrough: boolean;
  readErrors: ErrorAction;
  writeErrors: ErrorAction;
  accounting: DriveAccounting;
}

/** How its requests are counted; a device on it may say otherwise of the first two. */
export interface DriveAccounting {
  accountsInvalid: boolean;
  accountsFailed: boolean;
  /** Over how many seconds each query-blockstats tells their latencies. */
  intervals: number[];
}

export const USUAL_ACCOUNTING: DriveAccounting = {
  accountsInvalid: true,
  accountsFailed: true,
  intervals: [],
};

/** A -drive: a backend that commands know by its id, with a medium or without one, and maybe a device on it. */
export class Drive {
  readonly properties: DriveProperties;
  readonly backend: BlockBackend;
  readonly #graph: Graph;

  private constructor(graph: Graph, properties: DriveProperties) {
    this.#graph = graph;
    this.properties = properties;
    this.backend = graph.createBackend({ name: properties.id, description: this.description, ...IDLE });
    this.backend.writethrough = properties.writethrough;
    this.#account(properties.accounting);
  }

  /** A drive that no command knows yet. `node`: its medium. Errors: those of a graph that cannot be. */
  static async create(graph: Graph, properties: DriveProperties, node: Node | undefined): Promise<Drive> {
    const drive = new Drive(graph, properties);
    if (node) await graph.transaction((transaction) => void transaction.attach(drive.backend, 'root', node));
    graph.drives.set(properties.id, drive.backend);
    return drive;
  }

  #account({ accountsInvalid, accountsFailed, intervals: lengths }: DriveAccounting): void {
    const { statistics, clock } = this.backend;
    const intervals = lengths.map((seconds) => new IntervalStatistics(seconds, clock.nowMs()));
    Object.assign(statistics, { accountsInvalid, accountsFailed, intervals });
  }

  get id(): string {
    return this.properties.id;
  }

  /** In permission conflicts, while no device has it. */
  get description(): string {
    return `block device '${this.id}'`;
  }

  /** Commands know it no more. */
  forget(): void {
    if (this.#graph.drives.get(this.id) === this.backend) this.#graph.drives.delete(this.id);
    this.backend.name = '';
  }
}

/** What a drive asks of its medium while no device uses it. */
export const IDLE = { perm: Permission.consistentRead, shared: ALL_PERMISSIONS } as const;

/** Puts a node into a backend that has none. Errors: busy where its other users conflict. */
export async function insertMedium(graph: Graph, backend: BlockBackend, node: Node): Promise<void> {
  await graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
}

/** Takes the node out of a backend, if it has one. */
export async function detachMedium(graph: Graph, backend: BlockBackend): Promise<void> {
  const { root } = backend;
  if (!root) return;
  // The program may have requests of its own in flight.
  await graph.drained([root.node], () => graph.transaction((transaction) => transaction.detach(root)));
}

/** The same; what only it held closes. */
export async function takeMedium(graph: Graph, backend: BlockBackend): Promise<void> {
  const node = backend.root?.node;
  await detachMedium(graph, backend);
  if (node) await graph.release([node]);
}
