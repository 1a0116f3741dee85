import { BlockError, errnoOf, errnoText } from '../base/error.js';
import type { BlockBackend } from '../block/backend.js';
import type { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { ALL_PERMISSIONS, Permission } from '../block/permissions.js';
import type { BlockStatus, IoRequest } from '../block/request.js';
import type { SocketAddress } from '../host/host.js';
import type { LostChanges } from '../wire/nbd/lost-changes.js';
import { NbdServer } from '../wire/nbd/server.js';
import type { NbdTarget } from '../wire/nbd/target.js';
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
  /** Where the guest's I/O comes in: an NBD server whose one export (named by the device's id) is the device. */
  endpoint?: SocketAddress;
}

/** What a program gives, which may not be typed. Errors: kind invalid. */
export function checkDeviceProperties(nodeName: string, properties: DeviceProperties): void {
  if (typeof nodeName !== 'string') throw new BlockError('invalid', 'A node is given by its name');
  const { id, readErrors, writeErrors, endpoint } = properties ?? {};
  if (typeof id !== 'string' || !/^[A-Za-z][A-Za-z0-9._-]*$/.test(id))
    throw new BlockError('invalid', "Parameter 'id' expects an identifier");
  for (const key of Object.keys(properties))
    if (!DEVICE_KEYS.has(key)) throw new BlockError('invalid', `Parameter '${key}' is unexpected`);
  for (const key of ['shareRw', 'writeCache'] as const)
    if (!['undefined', 'boolean'].includes(typeof properties[key]))
      throw new BlockError('invalid', `Parameter '${key}' expects a boolean`);
  for (const action of [readErrors, writeErrors])
    if (action !== undefined && !ERROR_ACTIONS.has(action))
      throw new BlockError('invalid', `Parameter '${String(action)}' is no error policy`);
  if (endpoint !== undefined && !['unix', 'inet', 'fd'].includes(endpoint?.type))
    throw new BlockError('invalid', "Parameter 'endpoint' expects a socket address");
}

const DEVICE_KEYS = new Set(['id', 'shareRw', 'readErrors', 'writeErrors', 'writeCache', 'endpoint']);
const ERROR_ACTIONS: ReadonlySet<string> = new Set(['ignore', 'report', 'stop', 'enospc', 'auto']);

export interface IoErrorEvent {
  device: GuestDevice;
  operation: 'read' | 'write';
  action: 'ignore' | 'report' | 'stop';
  noSpace: boolean;
  reason: string;
}

/** A virtio-blk front end as an attach point: the node that it holds is the guest's disk. */
export class GuestDevice {
  readonly id: string;
  readonly backend: BlockBackend;
  ioStatus: 'ok' | 'failed' | 'nospace' = 'ok';
  readonly #graph: Graph;
  readonly #properties: DeviceProperties;
  #endpoint: { server: NbdServer; target: DeviceEndpoint } | undefined;

  private constructor(graph: Graph, properties: DeviceProperties, isIncoming: boolean) {
    this.id = properties.id;
    this.#graph = graph;
    this.#properties = properties;
    this.backend = graph.createBackend({
      description: `block device '${this.qdevPath}'`,
      ...permissionsOf(properties, isIncoming),
      isGuest: true,
    });
    this.backend.writethrough = !this.writeCache;
  }

  /** Errors: kind busy when the node's other users conflict; those of listen for the endpoint. */
  static async create(
    graph: Graph,
    node: Node,
    properties: DeviceProperties,
    runState: RunState,
    lost: LostChanges,
    onIoError: (event: IoErrorEvent) => void,
  ): Promise<GuestDevice> {
    const device = new GuestDevice(graph, properties, runState.status === 'inmigrate');
    await graph.transaction((transaction) => void transaction.attach(device.backend, 'root', node));
    try {
      if (properties.endpoint) await device.#listen(properties.endpoint, runState, lost, onIoError);
    } catch (error) {
      await device.#detach();
      throw error;
    }
    return device;
  }

  async #listen(
    address: SocketAddress,
    runState: RunState,
    lost: LostChanges,
    onIoError: (event: IoErrorEvent) => void,
  ): Promise<void> {
    const target = new DeviceEndpoint(this, this.#properties, runState, onIoError);
    const server = await NbdServer.listen(this.#graph.host, address, { lost });
    this.#endpoint = { server, target };
    server.addExport({ name: this.id, target, readOnly: false, multiConn: true });
  }

  /** Path of the device in QEMU's object tree, by which tools name it. */
  get qdevPath(): string {
    return `/machine/peripheral/${this.id}/virtio-backend`;
  }

  get endpointAddress(): SocketAddress | undefined {
    return this.#endpoint?.server.address;
  }

  get writeCache(): boolean {
    return this.#properties.writeCache ?? true;
  }

  async close(): Promise<void> {
    const dropped = this.#endpoint?.server.close();
    this.#endpoint?.target.end();
    await dropped;
    await this.backend.untilUnused();
    await this.#detach();
  }

  async #detach(): Promise<void> {
    const { root } = this.backend;
    if (!root) return;
    // The program may have requests of its own in flight.
    await this.#graph.drained([root.node], () =>
      this.#graph.transaction((transaction) => transaction.detach(root)),
    );
  }
}

/** While the guest's state is still to come, an export may write the image for it. */
function permissionsOf(properties: DeviceProperties, isIncoming: boolean): { perm: number; shared: number } {
  const perm = Permission.consistentRead | Permission.write;
  const isShared = isIncoming || (properties.shareRw ?? false);
  return { perm, shared: ALL_PERMISSIONS - (isShared ? 0 : Permission.write) };
}

/** The client of the endpoint is the guest: its requests wait while the guest is stopped, and errors follow policy. */
class DeviceEndpoint implements NbdTarget {
  readonly #device: GuestDevice;
  readonly #properties: DeviceProperties;
  readonly #runState: RunState;
  readonly #onIoError: (event: IoErrorEvent) => void;
  #isEnded = false;

  constructor(
    device: GuestDevice,
    properties: DeviceProperties,
    runState: RunState,
    onIoError: (event: IoErrorEvent) => void,
  ) {
    this.#device = device;
    this.#properties = properties;
    this.#runState = runState;
    this.#onIoError = onIoError;
  }

  get backend(): BlockBackend {
    return this.#device.backend;
  }

  get lengthBytes(): number {
    return this.#device.backend.lengthBytes;
  }

  tryRun(request: IoRequest): boolean {
    if (!this.#runState.isRunning) return false;
    try {
      return this.#device.backend.tryRun(request);
    } catch {
      // The promise form meets the error again and follows the policy.
      return false;
    }
  }

  /** One that fails and is tried again, once the guest runs, is done anew from its beginning. */
  async run(request: IoRequest): Promise<void> {
    const { generation, signal } = request;
    for (;;) {
      if (!this.#runState.isRunning) await this.#runState.running(() => this.#isEnded, signal);
      if (this.#isEnded) throw new BlockError('closed', 'The device is closed');
      request.assertIs(generation);
      request.signal = signal;
      try {
        return await this.#device.backend.run(request);
      } catch (error) {
        // A refusal of fast zeroes is an answer, and whoever is gone hears of no error.
        if (error instanceof BlockError && error.kind === 'unsupported') throw error;
        if (signal?.isCancelled === true) throw error;
        const action = this.#handle(request.kind === 'read' ? 'read' : 'write', error);
        if (action === 'report') throw error;
        // The buffer may hold what another request read.
        if (action === 'ignore')
          return request.kind === 'read' ? request.fillZero(0, request.lengthBytes) : undefined;
      }
    }
  }

  status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    return this.#device.backend.status(offset, lengthBytes);
  }

  /** The client is gone: its requests do not wait for the guest to run. */
  end(): void {
    this.#isEnded = true;
    this.#runState.wake();
  }

  #handle(operation: 'read' | 'write', error: unknown): 'ignore' | 'report' | 'stop' {
    const { readErrors = 'report', writeErrors = 'enospc' } = this.#properties;
    const policy = operation === 'read' ? readErrors : writeErrors;
    const noSpace = errnoOf(error) === 'ENOSPC';
    const action = policy === 'enospc' ? (noSpace ? 'stop' : 'report') : policy;
    const device = this.#device;
    if (action === 'stop') {
      if (device.ioStatus === 'ok') device.ioStatus = noSpace ? 'nospace' : 'failed';
      this.#onIoError({ device, operation, action, noSpace, reason: errnoText(errnoOf(error)) });
      this.#runState.stopForError();
    } else this.#onIoError({ device, operation, action, noSpace, reason: errnoText(errnoOf(error)) });
    return action;
  }
}
