import { given } from '../base/given.js';
import { assert } from '../base/assert.js';
import { BlockError, toBlockError } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { BackendProperties } from '../block/backend-user.js';
import type { DirtyBitmap } from '../block/dirty-bitmap.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import { NbdServer } from '../wire/nbd/server.js';
import { tlsServerEnd } from '../block/objects/tls-end.js';
import type { VhostServer } from '../wire/vhost-user/server.js';
import { allocationDepth, type BitmapReference, dirtyBitmap, findExportedBitmap } from './export-contexts.js';
import { listenVhostUser, type VhostUserProperties } from './vhost-user-export.js';

export interface ExportedNode {
  id: string;
  node: Node;
  writable: boolean;
  /** Every write is durable when it completes. */
  writethrough?: boolean;
}

export interface ExportProperties extends ExportedNode {
  /** NBD export name. */
  name: string;
  description?: string;
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

/** How an export is served. */
interface Serving {
  readonly type: 'nbd' | 'vhost-user-blk';
  /** Somebody uses it, so that only force removes it. */
  isUsed(): boolean;
  /** Requests of its clients are in flight. */
  isWorking(): boolean;
  /** Drops its clients; resolves when none of their requests is in flight. */
  end(): Promise<void>;
}

interface BlockExport {
  readonly id: string;
  /** On the NBD server. */
  readonly name: string | undefined;
  readonly serving: Serving;
  /** Over vhost-user. */
  readonly vhost?: VhostServer;
  readonly backend: BlockBackend;
  readonly drive: BlockBackend | undefined;
  readonly properties: ExportProperties | VhostUserProperties;
  /** Those that it keeps from being changed. */
  readonly bitmaps: readonly DirtyBitmap[];
  /** It shuts down, which ends when no request of a client is in flight. */
  gone?: Promise<void>;
}

/** The block exports of one engine: on its one NBD server, or each on a socket of its own. */
export class ExportRegistry {
  readonly #graph: Graph;
  readonly #lost: LostChanges;
  readonly #onDeleted: (id: string) => void;
  readonly #exports = new Map<string, BlockExport>();
  #server: NbdServer | undefined;
  #serverProperties: ServerProperties = {};
  #maxConnections = 0;
  /** Of the end of an export, the first. */
  #failure: { error: unknown } | undefined;

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
    this.#serverProperties = properties;
    this.#server = await NbdServer.listen(this.#graph.host, address, {
      maxConnections,
      lost: this.#lost,
      onRefused: (why) => onRefused(`option negotiation failed: ${why}`),
      ...(onLeft && { onLeft }),
      ...(end && { tls: end }),
      ...(handshakeMaxSeconds !== undefined && { handshakeTimeoutMs: 1000 * handshakeMaxSeconds }),
    });
  }

  /** Removes every export on NBD, drops every client, stops listening. */
  async stopServer(): Promise<void> {
    const server = this.#running();
    this.#server = undefined;
    const idle = server.close();
    const served = [...this.#exports.values()].filter(({ serving }) => serving.type === 'nbd');
    const ends = served.map((entry) => this.#shutDown(entry, idle));
    await Promise.allSettled(ends);
    await Promise.all([idle, ...ends]);
  }

  /** Newest first, as QEMU lists them. */
  list(): Array<{ id: string; type: Serving['type']; nodeName: string; shuttingDown: boolean }> {
    return [...this.#exports.values()].reverse().map(({ id, serving, backend, gone }) => ({
      id,
      type: serving.type,
      nodeName: backend.node.name,
      shuttingDown: gone !== undefined,
    }));
  }

  /** The NBD server and how it was started, if it runs. */
  get server(): { address: SocketAddress; properties: ServerProperties } | undefined {
    return this.#server && { address: this.#server.address, properties: this.#serverProperties };
  }

  /** The NBD server itself. */
  get nbd(): NbdServer | undefined {
    return this.#server;
  }

  /** Those over vhost-user, by their ids. */
  get vhost(): Array<{ id: string; server: VhostServer }> {
    return [...this.#exports.values()].flatMap(({ id, vhost }) => (vhost ? [{ id, server: vhost }] : []));
  }

  /** Those that do not shut down, as they were asked for, the oldest first. */
  asked(): Array<{ backend: BlockBackend; properties: ExportProperties | VhostUserProperties }> {
    return [...this.#exports.values()].filter(({ gone, backend }) => !gone && backend.root);
  }

  /** What stands for an export as long as it is there: another one may get its id. */
  find(id: string): object | undefined {
    return this.#exports.get(id);
  }

  /** The export whose user of a node that is. */
  idOf(user: BlockBackend): string | undefined {
    return [...this.#exports.values()].find(({ backend }) => backend === user)?.id;
  }

  /** Errors: invalid, exists. */
  checkNewId(id: string): void {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id)) throw new BlockError('invalid', 'Invalid block export id');
    if (this.#exports.has(id)) throw new BlockError('exists', `Block export id '${id}' is already in use`);
  }

  /**
   * On NBD. What is wrong is told in QEMU's order. Errors: as checkNewId; invalid, busy (permissions), permission
   * (read-only node).
   */
  async add(properties: ExportProperties): Promise<void> {
    const { id, node, name, writable } = properties;
    // A client is told the size once.
    const backend = await this.#attach(properties, { shared: ALL_PERMISSIONS - Permission.resize });
    try {
      const server = this.#running();
      server.checkNew({ name, ...given({ description: properties.description }) });
      const named = (properties.bitmaps ?? []).map((reference) =>
        findExportedBitmap(this.#graph, node, reference, writable),
      );
      // Each is a context once, however often it is named.
      const bitmaps = [...new Set(named)];
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
      this.#exports.set(id, {
        ...{ id, name, backend, properties, bitmaps, drive: properties.drive },
        serving: {
          type: 'nbd',
          isUsed: () => server.isUsed(name),
          isWorking: () => server.inFlightOf(name) > 0,
          end: () => server.removeExport(name, 'hard'),
        },
      });
    } catch (error) {
      await this.#detach(backend);
      throw error;
    }
  }

  /** Over vhost-user. Errors: as add(); those of listening. */
  async addVhostUser(properties: VhostUserProperties): Promise<void> {
    const { id } = properties;
    let server: VhostServer | undefined;
    const backend = await this.#attach(properties, { user: { resized: () => server?.configChanged() } });
    try {
      server = await listenVhostUser(this.#graph, properties, backend, this.#lost);
    } catch (error) {
      await this.#detach(backend);
      throw error;
    }
    const { isWorking, end } = { isWorking: () => server.inFlight > 0, end: () => server.close() };
    const serving: Serving = { type: 'vhost-user-blk', isUsed: () => false, isWorking, end };
    const common = { id, name: undefined, backend, properties, bitmaps: [], drive: undefined };
    this.#exports.set(id, { ...common, serving, vhost: server });
  }

  async #attach(
    { id, node, writable, writethrough = false }: ExportedNode,
    more: Partial<BackendProperties>,
  ): Promise<BlockBackend> {
    this.checkNewId(id);
    if (writable && node.readOnly)
      throw new BlockError('permission', 'Cannot export read-only node as writable');
    const backend = this.#graph.createBackend({
      description: 'an unnamed block device',
      perm: Permission.consistentRead | (writable ? Permission.write : 0),
      shared: ALL_PERMISSIONS,
      ...more,
    });
    await this.#graph.transaction((transaction) => void transaction.attach(backend, 'root', node));
    backend.writethrough = writethrough;
    return backend;
  }

  /**
   * Refuses, or disconnects its clients. Resolves when it is gone, or at once when a client's request is in flight,
   * which may take for ever: then it is shutting down. Errors: not-found; busy when a client uses it and the mode is safe.
   */
  async remove(id: string, mode: 'safe' | 'hard', type?: 'nbd'): Promise<void> {
    const entry = this.#exports.get(id);
    if (!entry) throw new BlockError('not-found', `Export '${id}' is not found`);
    if (type && entry.serving.type !== type)
      throw new BlockError('invalid', `Block export '${id}' is not an NBD export`);
    if (entry.gone) throw new BlockError('busy', `Export '${id}' is already shutting down`);
    const { serving, backend } = entry;
    const isWorking = serving.isWorking() || backend.inFlight > 0;
    if (mode === 'safe' && (isWorking || serving.isUsed()))
      throw new BlockError('busy', `export '${id}' still in use`);
    const gone = this.#shutDown(entry, serving.end());
    if (!isWorking) await gone;
  }

  /** Those that were made of a drive, whose medium goes. */
  async removeOf(drive: BlockBackend): Promise<void> {
    const made = [...this.#exports.values()].filter((entry) => entry.drive === drive);
    for (const { id, gone } of made) if (!gone) await this.remove(id, 'hard');
  }

  /** Those that have one of these names on the NBD server; resolves when they are gone. */
  async endNamed(names: readonly string[]): Promise<void> {
    const named = [...this.#exports.values()].filter(
      ({ name }) => name !== undefined && names.includes(name),
    );
    await Promise.all(named.map((entry) => this.#shutDown(entry, entry.serving.end())));
  }

  /** Errors: what was written through an export may not be durable; told again to whoever closes them again. */
  async close(): Promise<void> {
    const ends = this.#server ? [this.stopServer()] : [];
    for (const entry of this.#exports.values())
      ends.push(entry.gone ?? this.#shutDown(entry, entry.serving.end()));
    for (const end of await Promise.allSettled(ends))
      if (end.status === 'rejected') this.#failure ??= { error: end.reason };
    if (this.#failure) throw toBlockError(this.#failure.error);
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
