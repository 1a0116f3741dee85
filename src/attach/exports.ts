import { given } from '../base/given.js';
import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import { NbdServer } from '../wire/nbd/server.js';
import { tlsServerEnd } from '../block/objects/tls-end.js';
import { allocationDepth, type BitmapReference, dirtyBitmap, findExportedBitmap } from './export-contexts.js';

export interface ExportProperties {
  id: string;
  node: Node;
  /** NBD export name. */
  name: string;
  description?: string;
  writable: boolean;
  /** Every write is durable when it completes. */
  writethrough?: boolean;
  /** A drive: the export goes when its medium does. */
  drive?: BlockBackend | undefined;
  /** Dirty bitmaps that clients may read; nobody changes them meanwhile. */
  bitmaps?: readonly BitmapReference[];
  /** Clients may ask which image of the chain has a stretch. */
  allocationDepth?: boolean;
}

/** How the NBD server is to be. */
export interface ServerProperties {
  /** 0: as many as the server takes. */
  maxConnections?: number;
  /** 0: no limit. */
  handshakeMaxSeconds?: number;
  /** Clients must take TLS, with these credentials; with `authz`, only some come in. */
  tls?: { credentials: string; authz?: string };
  /** A client does not come in; else it is a line of the graph's. */
  onRefused?: (text: string) => void;
  /** A client that had chosen an export has left; so many are connected still. */
  onLeft?: (left: number) => void;
}

interface BlockExport {
  readonly id: string;
  readonly name: string;
  readonly backend: BlockBackend;
  readonly drive: BlockBackend | undefined;
  /** Those that it keeps from being changed. */
  readonly bitmaps: readonly DirtyBitmap[];
  /** It shuts down, which ends when no request of a client is in flight. */
  gone?: Promise<void>;
}

/** The block exports of one engine, all served by its one NBD server. */
export class ExportRegistry {
  readonly #graph: Graph;
  readonly #lost: LostChanges;
  readonly #onDeleted: (id: string) => void;
  readonly #exports = new Map<string, BlockExport>();
  #server: NbdServer | undefined;
  #maxConnections = 0;

  /** `lost`: shared with whatever else leads clients to the graph's disks. */
  constructor(graph: Graph, lost: LostChanges, onDeleted: (id: string) => void) {
    this.#graph = graph;
    this.#lost = lost;
    this.#onDeleted = onDeleted;
  }

  get isServing(): boolean {
    return this.#server !== undefined;
  }

  async startServer(address: SocketAddress, properties: ServerProperties = {}): Promise<void> {
    if (this.#server) throw new BlockError('exists', 'NBD server already running');
    const { maxConnections = 0, handshakeMaxSeconds, onLeft, tls } = properties;
    const { onRefused = (text: string) => this.#graph.onDriverLine(text) } = properties;
    const end = tls && tlsServerEnd(this.#graph.objects, tls.credentials, tls.authz);
    this.#maxConnections = maxConnections;
    this.#server = await NbdServer.listen(this.#graph.host, address, {
      maxConnections,
      lost: this.#lost,
      onRefused: (why) => onRefused(`option negotiation failed: ${why}`),
      ...(onLeft && { onLeft }),
      ...(end && { tls: end }),
      ...(handshakeMaxSeconds !== undefined && { handshakeTimeoutMs: 1000 * handshakeMaxSeconds }),
    });
  }

  /** Removes every export, drops every client, stops listening. */
  async stopServer(): Promise<void> {
    const server = this.#running();
    this.#server = undefined;
    const idle = server.close();
    const ends = [...this.#exports.values()].map((entry) => this.#shutDown(entry, idle));
    await Promise.allSettled(ends);
    await Promise.all([idle, ...ends]);
  }

  /** Newest first, as QEMU lists them. */
  list(): Array<{ id: string; nodeName: string; shuttingDown: boolean }> {
    return [...this.#exports.values()].reverse().map(({ id, backend, gone }) => ({
      id,
      nodeName: backend.node.name,
      shuttingDown: gone !== undefined,
    }));
  }

  /** Errors: invalid, exists. */
  checkNewId(id: string): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new BlockError('invalid', 'Invalid block export id');
    if (this.#exports.has(id)) throw new BlockError('exists', `Block export id '${id}' is already in use`);
  }

  /** What is wrong is told in QEMU's order. Errors: as checkNewId; invalid, busy (permissions), permission (read-only node). */
  async add(properties: ExportProperties): Promise<void> {
    const { id, node, name, writable } = properties;
    this.checkNewId(id);
    if (writable && node.readOnly)
      throw new BlockError('permission', 'Cannot export read-only node as writable');
    const backend = this.#graph.createBackend({
      description: 'an unnamed block device',
      perm: Permission.consistentRead | (writable ? Permission.write : 0),
      // A client is told the size once.
      shared: ALL_PERMISSIONS - Permission.resize,
    });
    await this.#graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    backend.writethrough = properties.writethrough ?? false;
    try {
      const server = this.#running();
      server.checkNew({ name, ...given({ description: properties.description }) });
      const bitmaps = (properties.bitmaps ?? []).map((reference) =>
        findExportedBitmap(this.#graph, node, reference, writable),
      );
      server.addExport({
        name,
        ...(properties.description !== undefined && { description: properties.description }),
        target: backend,
        readOnly: !writable,
        multiConn: this.#maxConnections !== 1,
        contexts: [
          ...(properties.allocationDepth === true ? [allocationDepth(backend)] : []),
          ...bitmaps.map(dirtyBitmap),
        ],
      });
      for (const bitmap of bitmaps) bitmap.busy = true;
      this.#exports.set(id, { id, name, backend, bitmaps, drive: properties.drive });
    } catch (error) {
      await this.#detach(backend);
      throw error;
    }
  }

  /**
   * Refuses, or disconnects its clients. Resolves when it is gone, or at once when a client's request is in flight,
   * which may take for ever: then it is shutting down. Errors: not-found; busy when a client uses it and the mode is safe.
   */
  async remove(id: string, mode: 'safe' | 'hard'): Promise<void> {
    const entry = this.#exports.get(id);
    if (!entry) throw new BlockError('not-found', `Export '${id}' is not found`);
    if (entry.gone) throw new BlockError('busy', `Export '${id}' is already shutting down`);
    const server = this.#running();
    const isWorking = server.inFlightOf(entry.name) > 0 || entry.backend.inFlight > 0;
    if (mode === 'safe' && (isWorking || server.connectionsOf(entry.name) > 0))
      throw new BlockError('busy', `export '${id}' still in use`);
    const gone = this.#shutDown(entry, server.removeExport(entry.name, 'hard'));
    if (!isWorking) await gone;
  }

  /** Those that were made of a drive, whose medium goes. */
  async removeOf(drive: BlockBackend): Promise<void> {
    const made = [...this.#exports.values()].filter((entry) => entry.drive === drive);
    for (const { id, gone } of made) if (!gone) await this.remove(id, 'hard');
  }

  async close(): Promise<void> {
    if (this.#server) await this.stopServer();
    for (const { gone } of this.#exports.values()) await gone;
  }

  #shutDown(entry: BlockExport, disconnected: Promise<void>): Promise<void> {
    entry.gone ??= disconnected.then(() => this.#forget(entry));
    // Whoever waits for it hears of an error; maybe nobody does.
    entry.gone.catch(() => undefined);
    return entry.gone;
  }

  async #forget(entry: BlockExport): Promise<void> {
    const { backend, bitmaps } = entry;
    // A client that has left by itself may have left a request behind.
    await backend.untilUnused();
    const { node } = backend;
    await this.#detach(backend);
    for (const bitmap of bitmaps) bitmap.busy = false;
    this.#exports.delete(entry.id);
    this.#onDeleted(entry.id);
    await this.#graph.collect([node]);
  }

  /** Nothing of the backend's own is in flight; for the node's other users nothing changes. */
  async #detach(backend: BlockBackend): Promise<void> {
    const { root } = backend;
    assert(root, 'an export has a node');
    await this.#graph.transaction((transaction) => transaction.detach(root));
  }

  #running(): NbdServer {
    if (!this.#server) throw new BlockError('invalid', 'NBD server not running');
    return this.#server;
  }
}
