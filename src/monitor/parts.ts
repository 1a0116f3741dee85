import { assert } from '../base/assert.js';
import { deferred, type Deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import { activate, inactivate } from '../block/activity.js';
import type { DriverDescription, DriverEvent, Json, NodeOptions, QuorumEvent } from '../block/driver.js';
import { Graph } from '../block/graph.js';
import type { Node } from '../block/node.js';
import { Opener } from '../block/open.js';
import type { BaseProtection } from '../block/shared-bases.js';
import { DriverRegistry } from '../block/registry.js';
import { ExportRegistry } from '../attach/exports.js';
import {
  checkDeviceProperties,
  type DeviceProperties,
  type GuestDevice,
  type IoErrorEvent,
} from '../attach/device.js';
import { deviceModel } from '../attach/device-models.js';
import { CharacterDevices } from '../attach/character-devices.js';
import type { Drive } from '../attach/drive.js';
import type { GuestProgram } from '../attach/guest-program.js';
import { Machine } from '../attach/machine.js';
import { Moves, type MovesProperties } from '../attach/migration/moves.js';
import { WholeMove } from '../attach/migration/whole-move.js';
import { type RunActions, RunState } from '../attach/run-state.js';
import { isSameDisk } from '../attach/same-disk.js';
import type { Host, HostSocket } from '../host/host.js';
import { JobManager } from '../jobs/manager.js';
import { LostChanges } from '../wire/nbd/lost-changes.js';
import { CommandRegistry, type Handler } from '../wire/qmp/registry.js';
import { QmpHub } from '../wire/qmp/hub.js';
import {
  blockdevReopen,
  type CommandArguments,
  type CommandName,
  type CommandResult,
  COMMANDS,
  type OptionalArguments,
} from '../schema/commands.js';
import { EXTENSION_COMMANDS } from '../schema/extensions.js';
import { OUT_OF_BAND } from '../schema/machine.js';
import type { Type } from '../schema/types.js';
import { NamedDescriptors, passedDescriptor } from './named-descriptors.js';
import type { DaemonProgram } from './takeover/giver.js';
import { closeGraph, Lifetime, runAll } from './closing.js';
import { plugDisk } from './devices.js';
import { Sessions } from './sessions/sessions.js';
import { KeptHeats } from './write-heat.js';
import { type EventListener, guarded, Listeners } from './listeners.js';

/** The unit of events. */
const SECTOR_BYTES = 512;

export interface EngineProperties {
  host: Host;
  drivers: Iterable<DriverDescription>;
  /** Which of QEMU's programs it stands in for: a machine with devices, or a storage daemon. */
  kind: 'machine' | 'storage-daemon';
  /** The guest does not run until `cont`. */
  startStopped?: boolean;
  /** The machine's type (pc), which says where disks may sit. */
  machine?: string;
  /** Default: /var/tmp. */
  temporaryFolder?: string;
  /** Another engine writes the images until they are exported or the guest starts here. */
  incoming?: boolean;
  /** Images are not trusted: of files that they name, only those in their own folders are opened. */
  untrusted?: boolean;
  /** What becomes of the machine when it is reset or shut down (reset, poweroff). */
  actions?: Partial<RunActions>;
  /** Standard input and output for a character device; one that edits lines shows itself what is typed. */
  openStandard?: (isEditor: boolean) => HostSocket;
  /** A line about what no client has asked for: a connection that is tried anew. */
  warn?: (text: string) => void;
  /** What the machine is called. */
  identity?: Identity;
  /** Of images that others stand on; default: none is refused for it, and no other folders are looked into. */
  baseProtection?: Partial<BaseProtection>;
  /** What QEMU prints on its standard output; a line without its end. */
  print?: (line: string) => void;
  /** The same of its standard error; default: as print. */
  printError?: (line: string) => void;
  /** Told of what no command can answer with: what an event listener throws, a bug. Default: Node's warning. */
  onUnexpectedError?: (error: unknown) => void;
}

/** The name and number of a machine, which tools know it by, and the memory that it would have. */
export interface Identity {
  name?: string;
  uuid?: string;
  memoryBytes?: number;
}

/** Some of an engine's parts: families of commands say which they need. */
export type Parts<K extends keyof EngineParts> = Pick<EngineParts, K>;

/**
 * One live block-storage engine: its graph, jobs, exports and guest devices. Several live in one process without
 * knowing of each other. The families of commands (register.ts) stand on it.
 */
export class EngineParts {
  readonly host: Host;
  readonly identity: Identity;
  readonly kind: EngineProperties['kind'];
  readonly graph: Graph;
  readonly opener: Opener;
  readonly jobs: JobManager;
  readonly exports: ExportRegistry;
  readonly runState: RunState;
  /** The guest's disks, by their ids; those that have none by their paths. */
  readonly devices = new Map<string, GuestDevice>();
  /** By their ids. */
  readonly drives = new Map<string, Drive>();
  readonly machine: Machine;
  /** Where one runs the guest. */
  guestProgram: GuestProgram | undefined;
  /** Names of points whose deletion waits or goes on. */
  deletingPoints: () => readonly string[] = () => [];
  /** What becomes of the machine when it is reset or shut down. */
  readonly actions: RunActions;
  /** From this machine to another, or to here. */
  readonly moves: Moves;
  /** The same, disks and all. */
  readonly wholeMove: WholeMove;
  readonly characterDevices = new CharacterDevices();
  /** Standard input and output, where they are the engine's. */
  readonly openStandard: ((isEditor: boolean) => HostSocket) | undefined;
  /** Tells of what no client asked for. */
  readonly warn: (text: string) => void;
  /** Where overlays are made that nobody keeps. */
  readonly temporaryFolder: string;
  readonly registry = new CommandRegistry();
  /** What clients make that is to end with them. */
  readonly sessions = new Sessions();
  /** All QMP clients, and execute(). */
  readonly hub: QmpHub;
  /** Those that clients gave a name (getfd). */
  readonly descriptors: NamedDescriptors;
  readonly print: (line: string) => void;
  readonly printError: (line: string) => void;
  readonly baseProtection: BaseProtection;
  /** Set by a program that serves, and lets another process take its place: from when on it does. */
  daemon: Promise<DaemonProgram> | undefined;
  /** Settled by `quit`; the program then closes the engine and ends. */
  readonly quitting: Deferred<void> = deferred();
  /** Settled when no other process takes this one's place any more: the program ends after that. */
  handingOver: Promise<void> | undefined;
  readonly #listeners: Listeners;
  /** Where disks are written to, for those who ask. */
  readonly heats: KeptHeats;
  /** Of the clients of exports and devices. */
  readonly lost = new LostChanges(isSameDisk);
  readonly #lifetime = new Lifetime();
  #jobsEnd: Promise<void> | undefined;
  /** The program's own code is told of its errors; should that fail too, Node tells. */
  readonly #report = (error: unknown): void => guarded(() => this.hub.onUnexpectedError(error), warn);

  constructor(properties: EngineProperties) {
    const { host } = properties;
    this.host = host;
    this.kind = properties.kind;
    this.machine = new Machine(properties.machine);
    this.temporaryFolder = properties.temporaryFolder ?? '/var/tmp';
    this.identity = properties.identity ?? {};
    this.openStandard = properties.openStandard;
    this.baseProtection = { refuses: false, folders: [], ...properties.baseProtection };
    this.warn = properties.warn ?? (() => undefined);
    const { print, printError = print } = properties;
    this.print = (line) => {
      if (print) guarded(() => print(line), this.#report);
    };
    this.printError = (line) => {
      if (printError) guarded(() => printError(line), this.#report);
    };
    this.#listeners = new Listeners(this.#report);
    this.graph = new Graph(host);
    this.graph.objects.isOfMachine = this.kind === 'machine';
    this.graph.onDriverEvent = (node, event) => this.#driverEvent(node, event);
    this.opener = new Opener(this.graph, new DriverRegistry(properties.drivers));
    this.opener.staysInFolders = properties.untrusted ?? false;
    this.heats = new KeptHeats(host.clock);
    this.hub = new QmpHub(this.registry, host.clock, host.trace);
    const { descriptorSets } = host.files;
    this.descriptors = new NamedDescriptors(descriptorSets);
    this.graph.descriptorOf = (name) => passedDescriptor(this, name);
    this.hub.onUnclaimed = (fd) => descriptorSets.close(fd);
    this.hub.onDeserted = () => descriptorSets.removeUnused();
    this.hub.onUnexpectedError = properties.onUnexpectedError ?? warn;
    const emit: EventListener = (event, data) => this.emit(event, data);
    this.jobs = new JobManager(this.opener, emit);
    this.exports = new ExportRegistry(this.graph, this.lost, (id) =>
      this.emit('BLOCK_EXPORT_DELETED', { id }),
    );
    const { startStopped = false, incoming = false } = properties;
    this.runState = new RunState({ stopped: startStopped, incoming }, (event) => this.emit(event, {}));
    this.actions = { reboot: 'reset', shutdown: 'poweroff', ...properties.actions };
    this.moves = new Moves(this.#movedParts());
    void this.quitting.promise.then(() => this.moves.destination.end());
    const { graph, opener, jobs, devices, moves } = this;
    this.wholeMove = new WholeMove({ host, graph, opener, jobs, devices, moves, emit });
  }

  #movedParts(): MovesProperties {
    const { host, graph, devices, jobs, exports, runState, machine, identity, warn, descriptors } = this;
    return {
      ...{ host, graph, devices, jobs, exports, runState, machine, warn, uuid: identity.uuid },
      emit: (event, data) => this.emit(event, data),
      takeDescriptor: (name) => descriptors.take(name),
      guestMemory: () => this.guestProgram?.memory,
    };
  }

  /** Images belong to the other end of a migration. */
  get isIncoming(): boolean {
    return this.runState.status === 'inmigrate';
  }

  /** Defines a command for every client. */
  command<N extends CommandName>(name: N, handler: Handler<CommandArguments<N>>): void {
    const definition = {
      name,
      arguments: this.#argumentsOf(name),
      outOfBand: OUT_OF_BAND.has(name),
      isExtension: Object.hasOwn(EXTENSION_COMMANDS, name),
    };
    this.registry.register(definition, handler as Handler<unknown>);
  }

  /** What nodes are opened with depends on the drivers that are here. */
  #argumentsOf(name: CommandName): Type<unknown> {
    const { type } = this.opener.drivers.gate;
    if (name === 'blockdev-add') return type;
    return name === 'blockdev-reopen' ? blockdevReopen(type) : COMMANDS[name];
  }

  /**
   * Runs one command as a QMP client would, after those under way.
   * Errors: BlockError (kind closed when the engine is), or QmpError for what is no error of the block layer.
   */
  execute<N extends CommandName>(name: N, ...[args]: OptionalArguments<N>): Promise<CommandResult<N>> {
    return this.hub.execute(name, args ?? {}) as Promise<CommandResult<N>>;
  }

  emit(event: string, data: { [key: string]: Json }): void {
    this.hub.emit(event, data);
    this.#listeners.emit(event, data);
  }

  /** Calls `listener` with every event; the answer ends that. Errors: kind closed. */
  onEvent(listener: EventListener): () => void {
    this.#lifetime.assertOpen();
    if (typeof listener !== 'function') throw new BlockError('invalid', 'An event listener is a function');
    return this.#listeners.add(listener);
  }

  /** blockdev-add without a client, after commands under way. Errors: kind closed; those of opening. */
  addNode(options: NodeOptions): Promise<Node> {
    return this.inTurn(() => this.openNode(options));
  }

  /** The same within a command. */
  async openNode(options: NodeOptions): Promise<Node> {
    const plan = this.opener.drivers.gate.plan(options);
    if (plan.options['node-name'] === undefined) {
      throw new BlockError('invalid', "'node-name' must be specified for the root node");
    }
    const context = { readOnly: false, monitorOwned: true, inactive: this.isIncoming };
    return this.opener.openPlan(plan, context);
  }

  /**
   * After commands under way. Errors: exists; not-found; busy when another user of the node conflicts; those of
   * activate.
   */
  addDevice(nodeName: string, properties: DeviceProperties): Promise<GuestDevice> {
    return this.inTurn(() => this.#addDevice(nodeName, properties));
  }

  async #addDevice(nodeName: string, properties: DeviceProperties): Promise<GuestDevice> {
    checkDeviceProperties(nodeName, properties);
    if (this.devices.has(properties.id))
      throw new BlockError('exists', `Duplicate device ID '${properties.id}'`);
    const node = this.graph.find(nodeName);
    if (!node)
      throw new BlockError('not-found', `Property 'virtio-blk-device.drive' can't find value '${nodeName}'`);
    const model = deviceModel('virtio-blk');
    assert(model.disk, 'virtio-blk is a disk');
    const path = this.machine.newPath(properties.id);
    const frontEnd = { model, disk: model.disk, path };
    const device = await plugDisk(this, node, properties, frontEnd);
    this.machine.plug({ model, id: properties.id, path, bus: undefined });
    return device;
  }

  /**
   * Makes images ours that another engine had, with all below them, or throws and leaves all as it was: see activate.
   * After commands under way.
   */
  activate(...nodes: Node[]): Promise<void> {
    return this.inTurn(() => this.takeImages(this.#present(nodes)));
  }

  /** The same within a command. Errors: busy, too, while the images are another machine's (a move). */
  async takeImages(nodes: Iterable<Node>): Promise<void> {
    this.moves.assertOwner();
    await activate(this.graph, nodes);
  }

  /**
   * Gives images to another engine, with all below them, after commands under way. Errors: see inactivate; busy while a
   * guest uses one.
   */
  inactivate(...nodes: Node[]): Promise<void> {
    return this.inTurn(() => this.leaveImages(this.#present(nodes)));
  }

  /** The same within a command. */
  async leaveImages(nodes: readonly Node[]): Promise<void> {
    const inUse = new Set(
      [...this.devices.values()].flatMap(({ backend }) => [...(backend.root?.node.chain() ?? [])]),
    );
    const used = this.runState.isRunning ? nodes.find((node) => inUse.has(node)) : undefined;
    if (used)
      throw new BlockError('busy', `Node '${used.name}' is in use by a guest that runs`, { node: used.name });
    await inactivate(this.graph, nodes);
  }

  /** What a program has found earlier may have gone while it waited for its turn. Errors: not-found. */
  #present(nodes: Node[]): Node[] {
    const gone = nodes.find((node) => this.graph.node(node.name) !== node);
    if (!gone) return nodes;
    throw new BlockError('not-found', `Failed to find node with node-name='${gone.name}'`);
  }

  get isClosed(): boolean {
    return this.#lifetime.isClosed;
  }

  /** Resolves when close() has done its work, well or not. */
  get ended(): Promise<void> {
    return this.#lifetime.ended;
  }

  /**
   * Runs what commands must not meet half done, as it must not meet theirs; close() waits for it. Errors: kind closed, and
   * those of `work`.
   */
  protected inTurn<T>(work: () => Promise<T>): Promise<T> {
    return this.whileOpen(() => this.hub.inBand(work));
  }

  /** Runs what close() must wait for. Errors: kind closed, and those of `work`. */
  whileOpen<T>(work: () => Promise<T>): Promise<T> {
    return this.#lifetime.during(work);
  }

  /** What close() still waits for, in words. */
  unfinished(): string[] {
    const jobs = this.jobs.list().filter((job) => !job.isOver);
    const open = [...this.graph.nodes.values()].filter(({ isClosing }) => isClosing);
    const nodes = open.length > 0 ? open : [...this.graph.nodes.values()].filter(({ implicit }) => !implicit);
    return [
      ...jobs.map((job) => `the ${job.type} job '${job.id}'`),
      ...nodes.map(({ name, filename }) => `node '${name}'${filename === '' ? '' : ` (${filename})`}`),
    ];
  }

  /** All jobs are over by the time that this resolves; the same for whoever asks. */
  endJobs(): Promise<void> {
    const afterGuest = this.kind === 'machine' && this.runState.isRunning;
    return (this.#jobsEnd ??= this.jobs.cancelAll({ afterGuest }));
  }

  /**
   * Ends jobs, exports and devices, flushes and closes every image; backends that the program has itself on nodes are
   * flushed and taken away. All of it is closed also when an error is thrown, the first that was met: what was written
   * may not be durable. From the call on everything else is refused (kind closed). A second call has nothing to do.
   */
  close(): Promise<void> {
    return this.#lifetime.end(async () => {
      this.sessions.stop();
      // A command that runs may wait for a job, or start one.
      await Promise.all([this.hub.close(), this.endJobs(), this.moves.close(), this.wholeMove.close()]);
      await runAll([
        () => this.jobs.endAll(),
        () => this.exports.close(),
        ...[...this.devices.values()].map((device) => () => device.close()),
        () => closeGraph(this.graph),
        async () => this.graph.objects.close(),
        () => this.characterDevices.close(),
        async () => this.descriptors.closeAll(),
      ]);
      this.devices.clear();
      this.drives.clear();
      this.#listeners.removeAll();
    });
  }

  /** Tells clients of a request of the guest that failed. */
  ioError({ device, operation, action, noSpace, reason }: IoErrorEvent): void {
    const {
      name,
      node: { name: node },
    } = device.backend;
    const data = {
      device: name,
      'node-name': node,
      operation,
      action,
      nospace: noSpace,
      reason,
      'qom-path': device.qdevPath,
    };
    this.emit('BLOCK_IO_ERROR', data);
  }

  #driverEvent(node: Node, event: DriverEvent): void {
    if (event.name !== 'corrupted') return this.#quorumEvent(node, event);
    const { message: msg, offset, sizeBytes: size, fatal } = event;
    // In QEMU's order.
    const data = { device: node.driveName, msg, ...given({ offset }), 'node-name': node.name, fatal };
    this.emit('BLOCK_IMAGE_CORRUPTED', { ...data, ...given({ size }) });
  }

  #quorumEvent(node: Node, event: QuorumEvent): void {
    const first = Math.floor(event.offset / SECTOR_BYTES);
    const end = Math.ceil((event.offset + event.lengthBytes) / SECTOR_BYTES);
    const sectors = { 'sector-num': first, 'sectors-count': end - first };
    if (event.name === 'no-quorum') this.emit('QUORUM_FAILURE', { reference: node.label, ...sectors });
    else {
      const { operation: type, role, error } = event;
      const child = { 'node-name': node.child(role).node.name };
      this.emit('QUORUM_REPORT_BAD', { type, ...child, ...sectors, ...(error !== undefined && { error }) });
    }
  }
}

function warn(error: unknown): void {
  process.emitWarning(error instanceof Error ? error : String(error));
}
