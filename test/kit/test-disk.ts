import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defined } from '../../src/base/assert.js';
import type { BlockBackend } from '../../src/block/backend.js';
import type { DriverDescription, NodeOptions } from '../../src/block/driver.js';
import { Graph } from '../../src/block/graph.js';
import { CHECKED } from '../../src/block/layers/layer-maps.js';
import type { Node } from '../../src/block/node.js';
import { Opener, type OpenContext } from '../../src/block/open.js';
import { ALL_PERMISSIONS, Permission } from '../../src/block/permissions.js';
import { DriverRegistry } from '../../src/block/registry.js';
import type { Host } from '../../src/host/host.js';

/** A graph of its own with some drivers, and a folder for images. */
export class TestBed {
  readonly host: Host;
  readonly graph: Graph;
  readonly opener: Opener;
  readonly folder: string;
  #images = 0;

  constructor(host: Host, drivers: Iterable<DriverDescription>, folder: string) {
    this.host = host;
    this.folder = folder;
    this.graph = new Graph(host);
    this.graph.layerMaps.settings = CHECKED;
    this.opener = new Opener(this.graph, new DriverRegistry(drivers));
  }

  /** A path that nothing has yet. */
  newPath(extension: string): string {
    return join(this.folder, `image${this.#images++}.${extension}`);
  }

  /** Opens options and attaches a user to them. */
  async open(options: NodeOptions, use: DiskUse = {}): Promise<TestDisk> {
    const context: OpenContext = { readOnly: use.readOnly ?? false, discard: 'unmap' };
    return this.attach(await this.opener.open(options, context), use);
  }

  /** A user of a node that is there; the disk's close() closes the node when that was its last user. */
  async attach(node: Node, use: DiskUse = {}): Promise<TestDisk> {
    const backend = this.graph.createBackend({
      description: 'a test',
      perm: use.perm ?? (use.readOnly ? Permission.consistentRead : WRITER),
      shared: use.shared ?? ALL_PERMISSIONS,
    });
    try {
      await this.graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    } catch (error) {
      await this.graph.collect([node]);
      throw error;
    }
    return new TestDisk(this.graph, backend);
  }
}

const WRITER = Permission.consistentRead | Permission.write | Permission.resize;

export interface DiskUse {
  readOnly?: boolean;
  perm?: number;
  shared?: number;
}

/** A node with a user. */
export class TestDisk {
  readonly backend: BlockBackend;
  readonly #graph: Graph;

  constructor(graph: Graph, backend: BlockBackend) {
    this.#graph = graph;
    this.backend = backend;
  }

  get node(): Node {
    return this.backend.node;
  }

  get lengthBytes(): number {
    return this.backend.lengthBytes;
  }

  /** As a guest's device does: at once if possible. */
  async read(offset: number, lengthBytes: number): Promise<Buffer> {
    const buffer = Buffer.alloc(lengthBytes, 0xee);
    if (!this.backend.tryRead(offset, buffer)) await this.backend.read(offset, buffer);
    return buffer;
  }

  readAll(): Promise<Buffer> {
    return this.read(0, this.lengthBytes);
  }

  async write(offset: number, bytes: Uint8Array, flags = 0): Promise<void> {
    if (!this.backend.tryWrite(offset, bytes, flags)) await this.backend.write(offset, bytes, flags);
  }

  async close(): Promise<void> {
    const { node } = this;
    const root = defined(this.backend.root, 'root of a test disk');
    await this.#graph.transaction((transaction) => transaction.detach(root));
    await this.#graph.collect([node]);
  }
}

/** A folder for images while `body` runs. */
export async function withFolder<T>(body: (folder: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-test-'));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Fails at the first byte that differs, without printing whole disks. */
export function assertSameBytes(actual: Uint8Array, expected: Uint8Array, what: string): void {
  assert.equal(actual.length, expected.length, `${what}: length`);
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  assert.fail(`${what}: byte ${at} is ${actual[at]}, not ${expected[at]}`);
}
