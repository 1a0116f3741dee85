import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { Host } from '../../host/host.js';
import type { MigrateSetParameters, MigrationInfo, MoveInfo } from '../../schema/migration.js';
import { Capabilities, type Capability } from './capabilities.js';
import { DestinationMove, type PassedArrival } from './destination.js';
import { MachineState, type MovedParts } from './machine-state.js';
import { Parameters } from './parameters.js';
import { openDoor, openDoorAgain, type Roads, routeTo, UnknownProtocol } from './routes.js';
import type { MoreToMove, MoveSettings } from './settings.js';
import { type PassedLeaving, SourceMove } from './source.js';
import type { MoveTarget } from './target.js';

export interface MovesProperties extends MovedParts {
  readonly host: Host;
  readonly emit: MoveSettings['emit'];
  readonly takeDescriptor: Roads['takeDescriptor'];
}

export interface MoveChoices {
  capabilities: Capability[];
  parameters: MigrateSetParameters;
}

/** What another process needs to go on as this one. A type alias: it is JSON. */
export type PassedMoves = {
  /** A machine was to come, and has. */
  isIncoming: boolean;
  arrival?: PassedArrival;
  leaving?: PassedLeaving;
};

/** Moves of one machine from here and to here. */
export class Moves {
  readonly capabilities = new Capabilities();
  readonly parameters = new Parameters();
  readonly source: SourceMove;
  readonly destination: DestinationMove;
  readonly #machine: MachineState;
  readonly #roads: Roads;
  #isIncoming: boolean;

  constructor(properties: MovesProperties) {
    const { host, emit, warn, graph, takeDescriptor, runState } = properties;
    const { capabilities, parameters } = this;
    const settings = { host, capabilities, parameters, emit, warn };
    this.#machine = new MachineState(properties);
    this.#roads = { settings, objects: graph.objects, takeDescriptor };
    this.#isIncoming = runState.status === 'inmigrate';
    this.source = new SourceMove(settings, this.#machine);
    this.destination = new DestinationMove(settings, this.#machine);
  }

  /** What has been set of how machines are moved; undefined: nothing. */
  get settings(): MoveChoices | undefined {
    const { capabilities, parameters } = this;
    const choices = { capabilities: capabilities.on, parameters: parameters.changed };
    const isUsual = choices.capabilities.length === 0 && Object.keys(choices.parameters).length === 0;
    return isUsual ? undefined : choices;
  }

  /** As `settings` was. Errors: those of setting them. */
  restore({ capabilities, parameters }: MoveChoices): void {
    this.capabilities.set(capabilities.map((capability) => ({ capability, state: true })));
    this.parameters.set(parameters);
  }

  /** Of a machine that is here, and does not move. */
  passed(): PassedMoves {
    const [arrival, leaving] = [this.destination.passed(), this.source.passed()];
    return { isIncoming: this.#isIncoming, ...given({ arrival, leaving }) };
  }

  /** As in the process that has passed it. Errors: those of listening where the machine has come in. */
  async adopt({ isIncoming, arrival, leaving }: PassedMoves): Promise<void> {
    this.#isIncoming = isIncoming;
    if (leaving) this.source.restore(leaving);
    if (!arrival) return;
    await this.destination.restore(arrival, (door, take) => openDoorAgain(this.#roads, door, take));
  }

  /** A machine has come, or is to come, and has not gone on to yet another. */
  #isDestination(): boolean {
    return this.#isIncoming && this.source.status === 'none';
  }

  /** What query-migrate tells: a machine that came and goes on tells of its own leaving. */
  info(): MigrationInfo {
    return this.#isDestination() ? this.destination.info() : this.source.info();
  }

  moveInfo(): MoveInfo {
    return this.#isDestination() ? this.destination.moveInfo() : this.source.moveInfo();
  }

  /** Errors: busy while images of this machine are, or may be, another's. */
  assertOwner(): void {
    this.source.assertOwner();
  }

  /** Errors: invalid, in QEMU's words; those of where it goes. */
  migrate(target: () => MoveTarget | undefined, isResumed: boolean, more: MoreToMove = {}): void {
    if (isResumed) throw new BlockError('invalid', 'Cannot resume if there is no paused migration');
    this.assertMayLeave();
    this.source.begin(() => {
      const parsed = target();
      if (!parsed) throw new UnknownProtocol();
      return routeTo(this.#roads, parsed);
    }, more);
  }

  /** Errors: busy, invalid: why no move from here may begin. */
  assertMayLeave(): void {
    if (this.source.isUnderWay) throw new BlockError('busy', "There's a migration process in progress");
    const { status } = this.#machine.parts.runState;
    if (status === 'inmigrate') throw new BlockError('invalid', 'Guest is waiting for an incoming migration');
    if (status === 'postmigrate')
      throw new BlockError('invalid', "Can't migrate the vm that was paused due to previous migration");
    this.assertOwner();
  }

  /** Whether this machine could go there: see SourceMove.rehearse. */
  async rehearse(target: MoveTarget, bitmaps: boolean): Promise<number> {
    return this.source.rehearse(routeTo(this.#roads, target), bitmaps);
  }

  /** Waits for a machine. Errors: invalid, in QEMU's words; those of where it comes from. */
  async listen(target: () => MoveTarget): Promise<void> {
    if (!this.#isIncoming)
      throw new BlockError('invalid', "'-incoming' was not specified on the command line");
    if (this.destination.isStarted)
      throw new BlockError('invalid', 'The incoming migration has already been started');
    await this.destination.listen((take) => openDoor(this.#roads, target(), take));
  }

  /** Errors: busy; those of activation and of the graph, when the images, or a disk, are used by others still. */
  async beforeStart(): Promise<void> {
    this.assertOwner();
    await this.#machine.activate();
    if (!this.#isIncoming || this.#machine.parts.runState.status === 'inmigrate') return;
    await this.#machine.settleDevices();
  }

  /** Of the side that has something to decide. Errors: see SourceMove.claim and DestinationMove.claim. */
  async claim(by: { word?: string; force?: boolean }): Promise<void> {
    await (this.#isDestination() ? this.destination.claim(by) : this.source.claim(by));
  }

  async release(): Promise<string> {
    return this.#isDestination() ? this.destination.release() : this.source.release();
  }

  /** Connections of a move are there, or awaited. */
  get isConnecting(): boolean {
    return this.source.isUnderWay || this.destination.isStarted;
  }

  /** Connections are given up: what becomes of the move is as when the link breaks. */
  hangUp(): void {
    this.source.hangUp();
    this.destination.hangUp();
  }

  async close(): Promise<void> {
    await this.source.close();
    await this.destination.close();
  }
}
