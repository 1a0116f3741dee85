import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { BlockBackend } from '../block/backend.js';
import type { Graph } from '../block/graph.js';
import { MAIN_THREAD } from '../block/home-thread.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import { NbdServer } from '../wire/nbd/server.js';
import type { VhostServer } from '../wire/vhost-user/server.js';
import { DeviceTarget } from './device-target.js';
import {
  checkEndpoint,
  type DiskAppearance,
  type Endpoint,
  type EndpointServer,
  serveEndpoint,
} from './endpoint.js';
import type { DeviceModel, DiskModel } from './device-models.js';
import { detachMedium, type Drive, IDLE } from './drive.js';
import type { RunState } from './run-state.js';

export type ErrorAction = 'report' | 'ignore' | 'stop' | 'enospc';

export interface DeviceProperties {
  id: string;
  /** Lets others write to the disk (false). */
  shareRw?: boolean;
  /** What happens when a request fails (reads: report, writes: enospc); a stopped guest's is tried again at cont. */
  readErrors?: ErrorAction;
  writeErrors?: ErrorAction;
  /** False: every write is durable when it completes (true). */
  writeCache?: boolean;
  /** Whether requests that are refused, or fail, are an access with a latency (as its drive has it, else true). */
  accountsInvalid?: boolean;
  accountsFailed?: boolean;
  /** Where the guest's I/O comes in. */
  endpoint?: Endpoint;
}

/** Of a device of a command line, which may have no id: then it has a path only. */
export type FrontEndProperties = Omit<DeviceProperties, 'id'> & { id?: string; appearance?: DiskAppearance };

/** What a program gives, which may not be typed. Errors: kind invalid. */
export function checkDeviceProperties(nodeName: string, properties: DeviceProperties): void {
  if (typeof nodeName !== 'string') throw new BlockError('invalid', 'A node is given by its name');
  const { id, readErrors, writeErrors, endpoint } = properties ?? {};
  if (typeof id !== 'string' || !/^[A-Za-z][A-Za-z0-9._-]*$/.test(id))
    throw new BlockError('invalid', "Parameter 'id' expects an identifier");
  for (const key of Object.keys(properties))
    if (!DEVICE_KEYS.has(key)) throw new BlockError('invalid', `Parameter '${key}' is unexpected`);
  for (const key of FLAGS)
    if (!['undefined', 'boolean'].includes(typeof properties[key]))
      throw new BlockError('invalid', `Parameter '${key}' expects a boolean`);
  for (const action of [readErrors, writeErrors])
    if (action !== undefined && !ERROR_ACTIONS.has(action))
      throw new BlockError('invalid', `Parameter '${String(action)}' is no error policy`);
  if (endpoint !== undefined) checkEndpoint(endpoint);
}

const FLAGS = ['shareRw', 'writeCache', 'accountsInvalid', 'accountsFailed'] as const;
const DEVICE_KEYS = new Set<string>(['id', 'readErrors', 'writeErrors', 'endpoint', ...FLAGS]);
const ERROR_ACTIONS: ReadonlySet<string> = new Set(['ignore', 'report', 'stop', 'enospc', 'auto']);

export interface IoErrorEvent {
  device: GuestDevice;
  operation: 'read' | 'write';
  action: 'ignore' | 'report' | 'stop';
  noSpace: boolean;
  reason: string;
}

/** What a front end is, beyond what its user chose. */
export interface FrontEnd {
  model: DeviceModel;
  disk: DiskModel;
  /** In QEMU's object tree. */
  path: string;
  /** What it is the disk of, where that is no node by itself. */
  drive?: Drive;
  /** The iothread that serves it; default: none, the main loop does. */
  thread?: string;
}

/** A disk of the guest as an attach point: the node that it holds is the guest's disk. */
export class GuestDevice {
  /** The user's, if there is one. */
  readonly id: string | undefined;
  readonly model: DeviceModel;
  readonly disk: DiskModel;
  readonly backend: BlockBackend;
  readonly drive: Drive | undefined;
  /** Of the device in QEMU's object tree. */
  readonly path: string;
  ioStatus: 'ok' | 'failed' | 'nospace' = 'ok';
  isTrayOpen = false;
  readonly #graph: Graph;
  readonly #properties: FrontEndProperties;
  readonly #thread: string;
  #endpoint: { server: EndpointServer; target: DeviceTarget } | undefined;

  private constructor(graph: Graph, properties: FrontEndProperties, frontEnd: FrontEnd) {
    const { model, disk, path, drive, thread = MAIN_THREAD } = frontEnd;
    this.#thread = thread;
    this.id = properties.id;
    this.model = model;
    this.disk = disk;
    this.path = path;
    this.drive = drive;
    this.#graph = graph;
    this.#properties = { ...policiesOf(drive), ...properties };
    this.backend = drive?.backend ?? emptyBackend(graph);
  }

  /**
   * `node`: its medium, where it has no drive. Errors: kind busy when the node's other users conflict; those of listen
   * for the endpoint.
   */
  static async create(
    graph: Graph,
    node: Node | undefined,
    properties: FrontEndProperties,
    frontEnd: FrontEnd,
    runState: RunState,
    lost: LostChanges,
    onIoError: (event: IoErrorEvent) => void,
  ): Promise<GuestDevice> {
    const device = new GuestDevice(graph, properties, frontEnd);
    await device.#take(node, runState.status === 'inmigrate');
    try {
      if (properties.endpoint) await device.#listen(properties.endpoint, runState, lost, onIoError);
    } catch (error) {
      await device.#giveBack();
      throw error;
    }
    return device;
  }

  /** The backend becomes the guest's. */
  async #take(node: Node | undefined, isIncoming: boolean): Promise<void> {
    const { backend } = this;
    const before = { description: backend.description, isGuest: backend.isGuest, thread: backend.thread };
    const { perm, shared } = this.permissionsFor(node ?? backend.root?.node, isIncoming);
    const description = `block device '${this.qdevPath}'`;
    Object.assign(backend, { description, isGuest: true, thread: this.#thread });
    try {
      await this.#graph.transaction((transaction) => {
        transaction.setPermissions(backend, perm, shared);
        if (node) transaction.attach(backend, 'root', node);
      });
    } catch (error) {
      Object.assign(backend, before);
      throw error;
    }
    backend.writethrough = !this.writeCache;
    const { accountsInvalid, accountsFailed } = this.#properties;
    Object.assign(backend.statistics, given({ accountsInvalid, accountsFailed }));
  }

  /**
   * The guest's disk is another node from now on, as it is between two requests: a filter put in front, or the node behind
   * it. Errors: those of permissions; then nothing has changed.
   */
  async changeNode(node: Node): Promise<void> {
    const { backend } = this;
    const { root } = backend;
    const { perm, shared } = this.permissionsFor(node, false);
    if (!root) {
      await this.#graph.transaction((transaction) => {
        transaction.setPermissions(backend, perm, shared);
        transaction.attach(backend, 'root', node);
      });
      return;
    }
    const old = root.node;
    if (old === node) return;
    let isResized = false;
    await this.#graph.drained([old, node], () => {
      // A job may have taken its filter out by now.
      isResized = root.node.lengthBytes !== node.lengthBytes;
      return this.#graph.transaction((transaction) => {
        transaction.retarget(root, node);
        transaction.setPermissions(backend, perm, shared);
      });
    });
    if (isResized) backend.childResized();
    await this.#graph.release([old]);
  }

  /** While the guest's state is still to come, an export may write the image for it. */
  permissionsFor(node: Node | undefined, isIncoming: boolean): { perm: number; shared: number } {
    const { readsOnly, resizable } = this.disk;
    const isWriter = !readsOnly && node !== undefined && !node.readOnly;
    const perm = Permission.consistentRead | (isWriter ? Permission.write : 0);
    const isShared = isIncoming || (this.#properties.shareRw ?? false);
    const shared = ALL_PERMISSIONS - (isShared ? 0 : Permission.write) - (resizable ? 0 : Permission.resize);
    return { perm, shared };
  }

  async #listen(
    endpoint: Endpoint,
    runState: RunState,
    lost: LostChanges,
    onIoError: (event: IoErrorEvent) => void,
  ): Promise<void> {
    const target = new DeviceTarget(this, this.#properties, runState, onIoError);
    const server = await serveEndpoint(this.#graph, endpoint, {
      ...{ target, lost, name: this.id ?? this.backend.name, writable: this.backend.isWritable },
      ...this.#properties.appearance,
    });
    this.backend.user.resized = () => server.resized?.();
    this.#endpoint = { server, target };
  }

  /** By which tools name the disk: the id for most, else the path of the object that is it. */
  get qdevPath(): string {
    const { disk, path, id } = this;
    return disk.inner ? disk.inner(path, id ?? '') : (id ?? path);
  }

  /** What happens when a request fails. */
  get errorPolicies(): { readErrors: ErrorAction; writeErrors: ErrorAction } {
    const { readErrors = 'report', writeErrors = 'enospc' } = this.#properties;
    return { readErrors, writeErrors };
  }

  /** A request has failed that is tried again when the guest goes on. */
  stopFor(event: IoErrorEvent, runState: RunState, tell: (event: IoErrorEvent) => void): void {
    if (this.ioStatus === 'ok') this.ioStatus = event.noSpace ? 'nospace' : 'failed';
    tell(event);
    runState.stopForError();
  }

  /** Whether a failed request may stop the guest: only then is there a status to tell. */
  get tellsIoStatus(): boolean {
    const { readErrors, writeErrors } = this.errorPolicies;
    return (
      this.disk.hasIoStatus && (readErrors === 'stop' || writeErrors === 'stop' || writeErrors === 'enospc')
    );
  }

  get endpointAddress(): SocketAddress | undefined {
    return this.#endpoint?.server.address;
  }

  /** As it was asked for. */
  get endpoint(): Endpoint | undefined {
    return this.#properties.endpoint;
  }

  /** Where its guest comes in over NBD. */
  get nbd(): NbdServer | undefined {
    const server = this.#endpoint?.server;
    return server instanceof NbdServer ? server : undefined;
  }

  /** Where its guest shares its memory. */
  get vhost(): VhostServer | undefined {
    return this.#endpoint?.server.vhost;
  }

  get writeCache(): boolean {
    return this.#properties.writeCache ?? !(this.drive?.properties.writethrough ?? false);
  }

  /** Ends it at the engine's end: its medium is closed with all other nodes. */
  async close(): Promise<void> {
    const dropped = this.#endpoint?.server.close();
    delete this.backend.user.resized;
    this.#endpoint?.target.end();
    await dropped;
    await this.backend.untilUnused();
    await detachMedium(this.#graph, this.backend);
  }

  /** The guest has no such device any more; its drive goes with it, and what only it held. */
  async unplug(): Promise<void> {
    const node = this.backend.root?.node;
    await this.close();
    this.drive?.forget();
    if (node) await this.#graph.release([node]);
  }

  /** It did not come to be: the drive is as it was before. */
  async #giveBack(): Promise<void> {
    const { backend, drive } = this;
    if (!drive) return detachMedium(this.#graph, backend);
    Object.assign(backend, { description: drive.description, isGuest: false, thread: undefined });
    await this.#graph.transaction((transaction) => {
      transaction.setPermissions(backend, IDLE.perm, IDLE.shared);
    });
  }
}

function policiesOf(drive: Drive | undefined): Pick<FrontEndProperties, 'readErrors' | 'writeErrors'> {
  if (!drive) return {};
  const { readErrors, writeErrors } = drive.properties;
  return { readErrors, writeErrors };
}

/** Nobody has said of its media that they are written to. */
function emptyBackend(graph: Graph): BlockBackend {
  const backend = graph.createBackend({ description: '', perm: 0, shared: ALL_PERMISSIONS });
  backend.mediumWasReadOnly = true;
  return backend;
}
