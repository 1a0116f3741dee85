import { BlockError } from '../../base/error.js';
import type { IoErrorEvent } from '../../attach/device.js';
import type { GuestProgram, PassedGuest } from '../../attach/guest-program.js';
import type { Plugged } from '../../attach/machine.js';
import { quiesceGuest } from '../../attach/quiesce.js';
import { type AddOptions, diskOf, plugDevice, takeOut, textsOf, unplug } from '../../monitor/devices.js';
import type { Engine } from '../../monitor/engine.js';
import { cont } from '../../monitor/run-state.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import type { QmpClient, QmpEvent } from '../../wire/qmp/client.js';
import type { CommandRegistry } from '../../wire/qmp/registry.js';
import { sideOfDevice, sideOfObject } from './command-line.js';
import type { FrontEnd, FrontEnds } from './front-ends.js';
import type { GuestProcess } from './guest-process.js';
import { joinSchemas } from './joined-schema.js';
import type { MachineMemory } from './memory.js';
import { handedOn, isOfDisks, MEMORY_SETTINGS, OF_CHARACTER_DEVICES, refusalOf, SHARED } from './routes.js';

/**
 * One QMP server for both: disks and jobs are livedisk's, all else is the program's that runs the guest. What concerns
 * both goes to both, in an order in which neither waits for the other, and clients see it once.
 */
export class BothWorlds implements GuestProgram {
  readonly #engine: Engine;
  readonly #qmp: QmpClient;
  readonly #frontEnds: FrontEnds;
  readonly #guestProcess: () => GuestProcess;
  readonly memory: MachineMemory;
  /** Commands that the other program answers, alone or with us. */
  #theirs = new Set<string>();
  /** The end is told; what the other program says of it is the same. */
  #isEnding = false;
  #isShutDown = false;
  /** Since the guest went on last. */
  #isStopAsked = false;
  #quiescing = Promise.resolve();
  /** Told, and not heard yet. */
  #kept: QmpEvent[] | undefined;

  constructor(
    engine: Engine,
    {
      qmp,
      frontEnds,
      memory,
      process,
    }: { qmp: QmpClient; frontEnds: FrontEnds; memory: MachineMemory; process: () => GuestProcess },
  ) {
    this.memory = memory;
    this.#engine = engine;
    this.#qmp = qmp;
    this.#frontEnds = frontEnds;
    this.#guestProcess = process;
    void engine.quitting.promise.then(() => (this.#isEnding = true));
    qmp.onEvent((event) => (this.#kept ? void this.#kept.push(event) : this.#hear(event)));
  }

  /** As another process had it; what it tells is kept until tellKept(), when there are those who hear it. */
  goOnFrom({ isShutDown, isStopAsked, theirs }: PassedWorlds): void {
    this.#isShutDown = isShutDown;
    this.#isStopAsked = isStopAsked;
    this.#kept = [];
    this.#qmp.thaw();
    this.#serve(theirs);
  }

  tellKept(): void {
    const kept = this.#kept ?? [];
    this.#kept = undefined;
    for (const event of kept) this.#hear(event);
  }

  /** It has said that it ends. */
  get isShutDown(): boolean {
    return this.#isShutDown;
  }

  comeToRest(): string | undefined {
    if (this.#qmp.isBusy) return 'a command to the program that runs the guest is not answered yet';
    this.#qmp.freeze();
    return undefined;
  }

  goOn(): void {
    this.#qmp.thaw();
  }

  passed(): PassedGuest {
    const { client, fd } = this.#qmp.passed();
    const { data, lifeFd } = this.#guestProcess().passed();
    const worlds: PassedWorlds = {
      ...{ isShutDown: this.#isShutDown, isStopAsked: this.#isStopAsked },
      theirs: [...this.#theirs],
    };
    const frontEnds = this.#frontEnds.passed(this.#engine.devices.values());
    return { data: { client, worlds, process: data, frontEnds }, fds: [fd, lifeFd] };
  }

  /** From here on clients have both. */
  async begin(): Promise<void> {
    const own = new Set(this.#engine.registry.names());
    const names = (await this.#ask('query-commands')) as Array<{ name: string }>;
    // How far its stream is, is told in no other way.
    const capabilities = [{ capability: 'events', state: true }];
    await this.#ask('migrate-set-capabilities', { capabilities });
    this.#serve(names.map(({ name }) => name).filter((name) => handedOn(name, own)));
  }

  /** `theirs`: commands that the other program answers. */
  #serve(theirs: readonly string[]): void {
    const { registry } = this.#engine;
    const own = new Set(registry.names());
    this.#theirs = new Set(theirs);
    for (const name of this.#theirs) registry.wrap(name, (args) => this.#ask(name, args));
    for (const name of own) {
      const why = refusalOf(name);
      if (why === undefined) continue;
      registry.wrap(name, () => {
        throw new BlockError('unsupported', why);
      });
    }
    this.#wrapShared(registry);
    this.memory.begin(this.#qmp);
    void this.#followFailures();
  }

  /** Where a request of a guest has failed, and waits for cont, its processors stop, too. */
  async #followFailures(): Promise<void> {
    const { runState } = this.#engine;
    for (;;) {
      if (runState.status === 'io-error' && !this.#isStopAsked) {
        this.#isStopAsked = true;
        await this.#ask('stop').catch(() => undefined);
      } else await runState.change();
    }
  }

  /** The other program has gone by rerror= or werror= itself, and keeps the request. */
  #heardFailure(data: JsonObject): void {
    const engine = this.#engine;
    const device = [...engine.devices.values()].find(
      (one) => this.#frontEnds.nodeOf(one) === textOf(data['node-name']),
    );
    if (!device) return;
    const event: IoErrorEvent = {
      device,
      operation: data['operation'] === 'read' ? 'read' : 'write',
      action: textOf(data['action']) as IoErrorEvent['action'],
      noSpace: data['nospace'] === true,
      reason: textOf(data['reason']),
    };
    if (event.action !== 'stop') return engine.ioError(event);
    // It stops by itself.
    this.#isStopAsked = true;
    device.stopFor(event, engine.runState, (told) => engine.ioError(told));
  }

  #wrapShared(registry: CommandRegistry): void {
    registry.wrap('query-status', () => this.#status());
    registry.wrap('stop', () => this.#stop());
    registry.wrap('cont', () => this.#cont());
    registry.wrap('device_add', (args) => this.#addDevice(args));
    registry.wrap('device_del', async (args) => void (await this.#ask('device_del', args)));
    registry.wrap('object-add', async (args, _caller, next) => {
      const side = sideOfObject(textOf(args['qom-type']));
      if (side !== 'ours') await this.#ask('object-add', args);
      if (side !== 'theirs') await next();
    });
    registry.wrap('object-del', async (args, _caller, next) => {
      const own = this.#engine.graph.objects.list().find(({ id }) => id === args['id']);
      if (own) await next();
      if (!own || sideOfObject(own.type.name) === 'both') await this.#ask('object-del', args);
    });
    for (const name of ['qom-get', 'qom-set'])
      registry.wrap(name, (args, _caller, next) =>
        this.#isOurObject(textOf(args['path'])) ? next() : this.#ask(name, args),
      );
    for (const [name, argument] of OF_CHARACTER_DEVICES)
      registry.wrap(name, (args, _caller, next) =>
        this.#engine.characterDevices.find(textOf(args[argument])) ? next() : this.#ask(name, args),
      );
    registry.wrap('query-chardev', async (_args, _caller, next) => [
      ...((await next()) as JsonObject[]),
      ...((await this.#ask('query-chardev')) as JsonObject[]),
    ]);
    for (const [name, ofMemory] of MEMORY_SETTINGS)
      registry.wrap(name, async (args, _caller, next) => {
        const result = await next();
        const theirs = ofMemory(args);
        if (theirs) await this.#ask(name, theirs);
        return result;
      });
    registry.wrap('query-migrate', async (_args, _caller, next) => {
      const own = (await next()) as JsonObject;
      const { ram } = (await this.#ask('query-migrate')) as JsonObject;
      return own['ram'] !== undefined && ram !== undefined ? { ...own, ram } : own;
    });
    registry.wrap('query-qmp-schema', async (_args, _caller, next) => {
      const [ours, theirs] = [await next(), await this.#ask('query-qmp-schema')];
      const isTheirs = (name: string): boolean => this.#theirs.has(name) || SHARED.has(name);
      return joinSchemas(ours as JsonObject[], theirs as JsonObject[], isTheirs);
    });
  }

  /** Limits of ours; others are in the other program alone, or there too. */
  #isOurObject(path: string): boolean {
    const id = path.replace(/^\/objects\//, '');
    const own = this.#engine.graph.objects.list().find((object) => object.id === id);
    return own !== undefined && sideOfObject(own.type.name) === 'ours';
  }

  #ask(name: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.#qmp.execute(name, args);
  }

  endpointFor: GuestProgram['endpointFor'] = (model) => this.#frontEnds.endpointFor(model);

  refusal = refusalOf;

  async runHuman(line: string): Promise<string> {
    const text = await this.#ask('human-monitor-command', { 'command-line': line });
    return textOf(text).replaceAll('\r\n', '\n');
  }

  async #status(): Promise<JsonValue> {
    const theirs = (await this.#ask('query-status')) as JsonObject;
    const { status } = this.#engine.runState;
    return OURS_TO_TELL.has(status) ? { ...theirs, status, running: false } : theirs;
  }

  /** The guest first: what it has asked for is answered before its devices stop, unless an answer waits for cont. */
  async #stop(): Promise<void> {
    const { runState } = this.#engine;
    if (runState.status === 'io-error') return;
    // Only remembered for the guest that comes.
    if (runState.status === 'inmigrate') return void runState.stop();
    await this.#unlessFailing(this.#ask('stop'));
    await this.#quiesce();
  }

  /** The guest's requests wait here until we run, too; where one has failed, it does before the guest's program answers. */
  async #cont(): Promise<void> {
    this.#engine.moves.assertOwner();
    if (this.#engine.runState.status === 'inmigrate') return cont(this.#engine);
    // Else its processors begin before it is refused, and its memory has left.
    if (this.memory.hasGone) throw new BlockError('invalid', 'Migration is not finalized yet');
    this.#engine.runState.assertMayResume();
    this.#isStopAsked = false;
    if (this.#engine.runState.status === 'io-error') {
      await cont(this.#engine);
      return this.#unlessFailing(this.#ask('cont'));
    }
    await this.#ask('cont');
    try {
      await cont(this.#engine);
    } catch (error) {
      await this.#ask('stop');
      throw error;
    }
  }

  /** Waits for the answer, or until a request of the guest has failed, and is to be tried again at cont. */
  async #unlessFailing(answer: Promise<JsonValue>): Promise<void> {
    const { runState } = this.#engine;
    let isOver = false;
    const answered = answer.finally(() => {
      isOver = true;
      runState.wake();
    });
    answered.catch(() => undefined);
    while (!isOver && runState.status !== 'io-error') await runState.change();
    if (isOver) await answered;
  }

  #quiesce(): Promise<void> {
    const { runState, graph, devices } = this.#engine;
    if (runState.stop(this.#isShutDown ? 'shutdown' : 'paused'))
      this.#quiescing = quiesceGuest(graph, devices.values());
    return this.#quiescing;
  }

  async #addDevice(args: JsonObject): Promise<JsonValue | void> {
    const side = sideOfDevice(textOf(args['driver']));
    if (side === 'theirs') return this.#ask('device_add', args);
    const options: AddOptions = { mode: 'keyval', hot: true };
    const plugged = await plugDevice(this.#engine, textsOf(args), options);
    try {
      if (side === 'both') return await this.#ask('device_add', args);
      await this.#plug(this.#frontEnd(plugged, args));
    } catch (error) {
      await takeOut(this.#engine, plugged);
      throw error;
    } finally {
      this.#frontEnds.removeSockets();
    }
  }

  #frontEnd(plugged: Plugged, args: JsonObject): FrontEnd {
    const disk = diskOf(this.#engine, plugged);
    if (!disk) throw new BlockError('invalid', 'No disk');
    return this.#frontEnds.of(plugged, disk, { isPlaced: args['bus'] !== undefined, given: args });
  }

  async #plug(frontEnd: FrontEnd): Promise<void> {
    if (frontEnd.kind === 'node') await this.#ask('blockdev-add', frontEnd.node);
    else {
      const addr = { type: 'unix', data: { path: frontEnd.path } };
      const backend = { type: 'socket', data: { addr, server: false } };
      await this.#ask('chardev-add', { id: frontEnd.chardev, backend });
    }
    try {
      await this.#ask('device_add', frontEnd.device);
    } catch (error) {
      await this.#drop(frontEnd).catch(() => undefined);
      throw error;
    }
  }

  async #drop(frontEnd: FrontEnd): Promise<void> {
    if (frontEnd.kind === 'node')
      await this.#ask('blockdev-del', { 'node-name': frontEnd.node['node-name'] ?? '' });
    else await this.#ask('chardev-remove', { id: frontEnd.chardev });
  }

  /** What the other program tells, once, and in its order with what we tell. */
  #hear({ event, data }: QmpEvent): void {
    switch (event) {
      case 'MIGRATION':
        return this.memory.heard(textOf(data['status']));
      case 'MIGRATION_PASS':
        return;
      case 'STOP':
        // The end of its memory's way: the move tells it.
        if (this.memory.isLeaving) return;
        return void this.#quiesce().catch(() => undefined);
      case 'BLOCK_IO_ERROR':
        return this.#heardFailure(data);
      case 'RESUME':
        // A request has failed again since.
        if (this.#engine.runState.status === 'io-error') return;
        return void this.#engine.whileOpen(() => cont(this.#engine)).catch(() => undefined);
      case 'DEVICE_DELETED':
        return this.#deleted(data);
      case 'RESET':
        this.#isShutDown = false;
        this.#engine.runState.reset();
        break;
      case 'SHUTDOWN':
        this.#isShutDown = true;
        if (this.#isEnding) return;
        break;
      default:
        if (isOfDisks(event)) return;
    }
    this.#engine.emit(event, data);
  }

  /** The guest has let go of a device. Of ours we tell ourselves, also of the part that it consists of. */
  #deleted(data: JsonObject): void {
    const engine = this.#engine;
    const path = textOf(data['path']);
    const found = engine.machine.find(path);
    if (!found) {
      const isPart = engine.machine.find(path.replace(/\/virtio-backend$/, '')) !== undefined;
      if (!isPart) engine.emit('DEVICE_DELETED', data);
      return;
    }
    const disk = diskOf(engine, found);
    const frontEnd = disk && this.#frontEnds.of(found, disk, { isPlaced: false });
    const leave = async (): Promise<void> => {
      await unplug(engine, found);
      if (frontEnd) await this.#drop(frontEnd);
    };
    engine
      .whileOpen(leave)
      .catch((error: unknown) => engine.warn(`a device that was deleted: ${String(error)}`));
  }
}

/** What another process is told. A type alias: it is JSON. */
export type PassedWorlds = { isShutDown: boolean; isStopAsked: boolean; theirs: string[] };

/** States of which the other program knows nothing, or something else. */
const OURS_TO_TELL: ReadonlySet<string> = new Set(['io-error', 'inmigrate', 'finish-migrate', 'postmigrate']);

function textOf(value: JsonValue | undefined): string {
  return typeof value === 'string' ? value : '';
}
