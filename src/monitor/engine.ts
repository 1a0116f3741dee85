import { deferred, type Deferred } from '../base/async.js';
import { BlockError, toBlockError } from '../base/error.js';
import { activate, inactivate } from '../block/activity.js';
import type { DriverDescription, DriverEvent, Json, NodeOptions } from '../block/driver.js';
import { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { Opener } from '../block/open.js';
import { DriverRegistry } from '../block/registry.js';
import { ExportRegistry } from '../export/exports.js';
import { type DeviceProperties, GuestDevice, type IoErrorEvent } from '../guest/device.js';
import { RunState } from '../guest/run-state.js';
import type { Host } from '../host/host.js';
import { JobManager } from '../jobs/manager.js';
import { CommandRegistry, type Handler } from '../qmp/registry.js';
import type { Writable } from '../qmp/json-format.js';
import { QmpHub } from '../qmp/session.js';
import { type CommandArguments, type CommandName, COMMANDS } from '../schema/commands.js';
import type { JsonObject, Type } from '../schema/types.js';
import { registerCommands } from './register.js';

export interface EngineProperties {
  host: Host;
  drivers: Iterable<DriverDescription>;
  /** Which of QEMU's programs it stands in for: a machine with devices, or a storage daemon. */
  kind: 'machine' | 'storage-daemon';
  /** The guest does not run until `cont`. */
  startStopped?: boolean;
  /** Another engine writes the images until they are exported or the guest starts here. */
  incoming?: boolean;
  /** What QEMU prints on its standard output; a line without its end. */
  print?: (line: string) => void;
}

export type EventListener = (event: string, data: { [key: string]: Json }) => void;

/**
 * One live block-storage engine: its graph, jobs, exports and guest devices, and the commands on them. Several live
 * in one process without knowing of each other.
 */
export class Engine {
  readonly host: Host;
  readonly kind: EngineProperties['kind'];
  readonly graph: Graph;
  readonly opener: Opener;
  readonly jobs: JobManager;
  readonly exports: ExportRegistry;
  readonly runState: RunState;
  readonly devices = new Map<string, GuestDevice>();
  readonly registry = new CommandRegistry();
  /** All QMP clients, and execute(). */
  readonly hub: QmpHub;
  readonly print: (line: string) => void;
  /** Settled by `quit`; the program then closes the engine and ends. */
  readonly quitting: Deferred<void> = deferred();
  readonly #listeners = new Set<EventListener>();

  constructor(properties: EngineProperties) {
    const { host } = properties;
    this.host = host;
    this.kind = properties.kind;
    this.print = properties.print ?? ((): void => undefined);
    this.graph = new Graph(host);
    this.graph.onDriverEvent = (node, event) => this.#driverEvent(node, event);
    this.opener = new Opener(this.graph, new DriverRegistry(properties.drivers));
    this.hub = new QmpHub(this.registry, host.clock);
    const emit: EventListener = (event, data) => this.emit(event, data);
    this.jobs = new JobManager(this.opener, emit);
    this.exports = new ExportRegistry(this.graph, (id) => this.emit('BLOCK_EXPORT_DELETED', { id }));
    const { startStopped = false, incoming = false } = properties;
    this.runState = new RunState({ stopped: startStopped, incoming }, (event) => this.emit(event, {}));
    registerCommands(this);
  }

  /** Images belong to the other end of a migration. */
  get isIncoming(): boolean {
    return this.runState.status === 'inmigrate';
  }

  /** Defines a command for every client. */
  command<N extends CommandName>(name: N, handler: Handler<CommandArguments<N>>): void {
    const args: Type<unknown> = COMMANDS[name];
    this.registry.register({ name, arguments: args }, handler as Handler<unknown>);
  }

  /**
   * Runs one command as a QMP client would, after those under way.
   * Errors: BlockError, or QmpError for what is no error of the block layer.
   */
  execute<N extends CommandName>(name: N, args: CommandArguments<N>): Promise<Writable> {
    return this.hub.execute(name, args as JsonObject);
  }

  emit(event: string, data: { [key: string]: Json }): void {
    this.hub.emit(event, data);
    for (const listener of this.#listeners) listener(event, data);
  }

  /** Calls `listener` with every event; the answer ends that. */
  onEvent(listener: EventListener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** blockdev-add without a client. Errors: those of opening. */
  addNode(options: NodeOptions): Promise<Node> {
    if (typeof options['node-name'] !== 'string') {
      throw new BlockError('invalid', "'node-name' must be specified for the root node");
    }
    return this.opener.open(options, { readOnly: false, monitorOwned: true, inactive: this.isIncoming });
  }

  /** Errors: exists; not-found; busy when another user of the node conflicts; those of activate. */
  async addDevice(nodeName: string, properties: DeviceProperties): Promise<GuestDevice> {
    if (this.devices.has(properties.id))
      throw new BlockError('exists', `Duplicate device ID '${properties.id}'`);
    const node = this.graph.nodes.get(nodeName);
    if (!node)
      throw new BlockError('not-found', `Property 'virtio-blk-device.drive' can't find value '${nodeName}'`);
    if (!this.isIncoming) await activate(this.graph, [node]);
    const device = await GuestDevice.create(this.graph, node, properties, this.runState, (event) =>
      this.#ioError(event),
    );
    this.devices.set(device.id, device);
    return device;
  }

  /** Makes an image ours that another engine had, with all below it, or throws and leaves all as it was: see activate. */
  activate(node: Node): Promise<void> {
    return activate(this.graph, [node]);
  }

  /** Gives an image to another engine, with all below it. Errors: see inactivate; busy while a guest uses it. */
  async inactivate(node: Node): Promise<void> {
    const users = [...this.devices.values()].filter(({ backend }) =>
      [...backend.node.chain()].includes(node),
    );
    if (this.runState.isRunning && users.length > 0)
      throw new BlockError('busy', `Node '${node.name}' is in use by a guest that runs`, { node: node.name });
    await inactivate(this.graph, [node]);
  }

  /**
   * Ends jobs, exports and devices, flushes and closes every image. All of it is closed also when an error is thrown,
   * the first that was met: what was written may not be durable.
   */
  async close(): Promise<void> {
    await this.jobs.cancelAll();
    const steps = [() => this.exports.close()];
    for (const device of this.devices.values()) steps.push(() => device.close());
    for (const node of this.graph.nodes.values()) node.monitorOwned = false;
    for (const node of this.graph.nodes.values()) steps.push(() => this.graph.collect([node]));
    let failure: unknown;
    for (const step of steps) await step().catch((error: unknown) => void (failure ??= error));
    this.devices.clear();
    if (failure !== undefined) throw toBlockError(failure);
  }

  #ioError({ device, operation, action, noSpace, reason }: IoErrorEvent): void {
    const node = device.backend.node.name;
    const data = { device: '', 'node-name': node, operation, action, nospace: noSpace, reason };
    this.emit('BLOCK_IO_ERROR', data);
  }

  #driverEvent(node: Node, event: DriverEvent): void {
    const data: { [key: string]: Json } = { device: '', 'node-name': node.name, msg: event.message };
    if (event.offset !== undefined) data['offset'] = event.offset;
    if (event.sizeBytes !== undefined) data['size'] = event.sizeBytes;
    this.emit('BLOCK_IMAGE_CORRUPTED', { ...data, fatal: event.fatal });
  }
}
