import { BlockError } from '../../base/error.js';
import { activate, inactivate, subtrees } from '../../block/activity.js';
import type { Graph } from '../../block/graph.js';
import { Node } from '../../block/node.js';
import { unitePermissions } from '../../block/permissions.js';
import type { JobManager } from '../../jobs/manager.js';
import type { BitmapMapping } from '../../schema/migration.js';
import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  type JsonValue,
  nullType,
  alternate,
  required,
  str,
  struct,
  type Type,
} from '../../schema/types.js';
import type { Section } from '../../wire/migration/messages.js';
import type { GuestDevice } from '../device.js';
import type { ExportRegistry } from '../exports.js';
import type { GuestMemory } from '../guest-program.js';
import type { Machine } from '../machine.js';
import { quiesceGuest } from '../quiesce.js';
import type { RunState, RunStatus } from '../run-state.js';
import {
  ANNOUNCED_SECTION,
  announceBitmaps,
  ArrivingBitmaps,
  BITMAP_SECTION,
  type LeavingBitmap,
  leavingBitmaps,
  saveBitmap,
} from './moved-bitmaps.js';

/** The engine's parts that are moved. */
export interface MovedParts {
  readonly graph: Graph;
  readonly devices: ReadonlyMap<string, GuestDevice>;
  readonly jobs: JobManager;
  readonly exports: ExportRegistry;
  readonly runState: RunState;
  readonly machine: Machine;
  readonly uuid: string | undefined;
  /** Where another program has the guest's memory. */
  readonly guestMemory: () => GuestMemory | undefined;
  /** A line that no client has asked for. */
  readonly warn: (text: string) => void;
}

const VERSION = 1;
/** Bytes of the stream of the program that runs the guest. */
export const MEMORY_SECTION = 'memory';

const Devices = struct('devices', {
  devices: required(arrayOf(struct('device', { path: required(str), model: required(str) }))),
});

/** Exports of the destination over which the disks have come. */
const Storage = struct('storage', { exports: required(arrayOf(str)) });

const State = struct('state', {
  status: required(
    enumOf('RunState', [
      'running',
      'paused',
      'prelaunch',
      'shutdown',
      'io-error',
      'restore-vm',
      'postmigrate',
    ]),
  ),
  disks: required(
    arrayOf(
      struct('disk', {
        path: required(str),
        sizeBytes: required(alternate('IntOrNull', [int, nullType])),
        isTrayOpen: required(bool),
        ioStatus: required(enumOf('IoStatus', ['ok', 'failed', 'nospace'])),
      }),
    ),
  ),
});
type State = Infer<typeof State>;

/** Bitmaps go along. */
export interface MovedBitmaps {
  readonly mapping: readonly BitmapMapping[] | undefined;
}

/** A machine as a move sees it: what it consists of, its state, its images. */
export class MachineState {
  readonly parts: MovedParts;
  #leaving: readonly LeavingBitmap[] = [];
  /** What mirrors write to, here or elsewhere, while the machine's images are another's. */
  #copies: ReadonlySet<Node> = new Set();

  constructor(parts: MovedParts) {
    this.parts = parts;
  }

  get identity(): { type: string; uuid?: string } {
    const { machine, uuid } = this.parts;
    return { type: machine.fullName, ...(uuid !== undefined && { uuid }) };
  }

  // ---- the source's side

  /** What the destination must have, and have room for; while the guest runs. Errors: those of announceBitmaps. */
  describe(bitmaps: MovedBitmaps | undefined, exports?: readonly string[]): Section[] {
    const devices = [...this.parts.machine.devices].map(({ path, model }) => ({ path, model: model.name }));
    return [
      json('devices', { devices }),
      ...(exports ? [json('storage', { exports })] : []),
      ...(bitmaps ? announceBitmaps(this.parts.graph, bitmaps.mapping) : []),
    ];
  }

  /**
   * Memory that another program has, in sections, while the guest goes on; at the end it rests. Errors: those of leave();
   * busy, where a request of the guest has failed and waits, of which its memory alone knows nothing.
   */
  async sendMemory(send: (section: Section) => Promise<void>): Promise<void> {
    const memory = this.parts.guestMemory();
    if (!memory) return;
    this.#assertNoneFailed();
    await memory.leave((bytes) => send({ name: MEMORY_SECTION, version: VERSION, bytes }));
    this.#assertNoneFailed();
  }

  #assertNoneFailed(): void {
    if (this.parts.runState.status !== 'io-error') return;
    throw new BlockError(
      'busy',
      'A request of the guest has failed, and waits for cont: the machine stays here',
    );
  }

  /** All that the stopped guest wrote is on disk. */
  async quiesce(): Promise<void> {
    await quiesceGuest(this.parts.graph, this.parts.devices.values());
  }

  /** Of a stopped machine. Errors: those of leavingBitmaps. */
  save(before: RunStatus, bitmaps: MovedBitmaps | undefined): Section[] {
    this.#leaving = bitmaps ? leavingBitmaps(this.parts.graph, bitmaps.mapping) : [];
    const disks = [...this.parts.devices.values()].map(({ path, backend, isTrayOpen, ioStatus }) => {
      const sizeBytes = backend.root?.node.lengthBytes ?? null;
      return { path, sizeBytes, isTrayOpen, ioStatus };
    });
    return [...this.#leaving.flatMap(saveBitmap), json('state', { status: before, disks })];
  }

  /**
   * All images are another machine's from here on, or none; those that a READY mirror has brought up to date are its still.
   * Errors: busy while another job runs; permission while somebody may write; those of a flush.
   */
  async inactivate(): Promise<void> {
    const { graph } = this.parts;
    this.#copies = await this.#settledCopies();
    // The images need not keep what goes along.
    this.#setGivenAway(true);
    try {
      await inactivate(graph, this.#nodes());
    } catch (error) {
      this.#setGivenAway(false);
      throw error;
    }
  }

  async #settledCopies(): Promise<Set<Node>> {
    const copies: Node[] = [];
    for (const job of this.parts.jobs.list()) {
      const copy = await job.settle();
      if (copy) copies.push(copy);
      else if (!job.isOver)
        throw new BlockError('busy', `The ${job.type} job '${job.id}' has not ended: its images cannot go`);
    }
    return subtrees(copies);
  }

  #setGivenAway(isGivenAway: boolean): void {
    for (const { bitmap } of this.#leaving) bitmap.isGivenAway = isGivenAway;
  }

  /** All images are ours. Errors: those of activate. */
  async activate(): Promise<void> {
    await activate(this.parts.graph, this.#nodes());
    this.#setGivenAway(false);
  }

  #nodes(): Node[] {
    return [...this.parts.graph.nodes.values()].filter(
      (node) => node.isOpen && !node.isClosing && !this.#copies.has(node),
    );
  }

  // ---- the destination's side

  /** The images are another machine's, but for those that somebody here writes. */
  async giveUp(): Promise<void> {
    const { graph } = this.parts;
    for (const node of this.#nodes()) {
      const isTop = ![...node.parents].some(({ parent }) => parent instanceof Node);
      if (isTop) await inactivate(graph, [node]).catch(() => undefined);
    }
  }

  /** Its guest's disks are its own again: others may write them no more. Errors: busy, in QEMU's words. */
  async settleDevices(): Promise<void> {
    await this.parts.graph.transaction((transaction) => {
      for (const device of this.parts.devices.values()) {
        const { perm, shared } = device.permissionsFor(device.backend.root?.node, false);
        transaction.setPermissions(device.backend, unitePermissions(device.backend.perm, perm), shared);
      }
    });
  }
}

/** A machine's state that comes. Nothing that anybody could use changes before apply(), and may be used before settle(). */
export class ArrivingState {
  readonly #parts: MovedParts;
  readonly #bitmaps: ArrivingBitmaps;
  #state: State | undefined;
  #exports: readonly string[] = [];
  #isDescribed = false;
  #hasMemory = false;

  constructor(parts: MovedParts, mapping: readonly BitmapMapping[] | undefined) {
    this.#parts = parts;
    this.#bitmaps = new ArrivingBitmaps(parts.graph, mapping, parts.warn);
  }

  /** Errors: unsupported for a section that is not known or newer; corrupt; invalid where it does not fit this machine. */
  async take(section: Section): Promise<void> {
    const { name, version } = section;
    const memory = this.#parts.guestMemory();
    const known = [ANNOUNCED_SECTION, BITMAP_SECTION, 'devices', 'storage', 'state'];
    if (memory) known.push(MEMORY_SECTION);
    if (!known.includes(name)) throw new BlockError('unsupported', `Unknown savevm section '${name}'`);
    if (version > VERSION)
      throw new BlockError('unsupported', `savevm: unsupported version ${version} for '${name}' v${VERSION}`);
    if (name === MEMORY_SECTION) {
      this.#hasMemory = true;
      return memory?.take(section.bytes);
    }
    try {
      if (name === 'devices') this.#takeDevices(parse(Devices, section));
      else if (name === 'storage') this.#exports = parse(Storage, section).exports;
      else if (name === 'state') this.#takeState(parse(State, section));
      else if (name === ANNOUNCED_SECTION) this.#bitmaps.announce(section);
      else this.#bitmaps.take(section);
    } catch (error) {
      if (error instanceof BlockError) throw error;
      throw new BlockError('corrupt', `The migration stream is damaged: section '${name}'`, { cause: error });
    }
  }

  #takeDevices({ devices }: Infer<typeof Devices>): void {
    this.#isDescribed = true;
    const here = [...this.#parts.machine.devices];
    for (const { path, model } of devices)
      if (!here.some((device) => device.path === path && device.model.name === model))
        throw new BlockError(
          'invalid',
          `Unknown savevm section or instance '${path}/${model}' 0. Make sure that your current VM setup matches ` +
            'your saved VM setup, including any hotplugged devices',
        );
  }

  #takeState(state: State): void {
    const paths = new Set([...this.#parts.devices.values()].map(({ path }) => path));
    const unknown = state.disks.find(({ path }) => !paths.has(path));
    if (unknown) throw new BlockError('invalid', `Unknown savevm section or instance '${unknown.path}' 0`);
    this.#state = state;
  }

  /** Nothing is missing. Errors: corrupt. */
  assertWhole(): State {
    this.#bitmaps.assertWhole();
    if (this.#state && this.#isDescribed) return this.#state;
    throw new BlockError('corrupt', 'The migration stream is damaged: a section is missing');
  }

  /** The same of memory that another program has. Errors: corrupt; those of the program. */
  async assertMemoryWhole(): Promise<void> {
    await this.#parts.guestMemory()?.assertWhole();
  }

  /** Before the images are opened. */
  place(): void {
    this.#bitmaps.place();
  }

  /** Nothing has come. */
  remove(): void {
    this.#bitmaps.remove();
    if (this.#hasMemory) this.#parts.guestMemory()?.drop();
  }

  /** Once the images are as the source has left them. Errors: invalid, where a disk here is another one. */
  check(): void {
    for (const { path, sizeBytes } of this.assertWhole().disks) {
      const node = this.#deviceAt(path)?.backend.root?.node;
      const here = node?.lengthBytes ?? null;
      if (here === sizeBytes) continue;
      const told = (bytes: number | null): string => (bytes === null ? 'empty' : `${bytes} bytes long`);
      throw new BlockError(
        'invalid',
        `Disk '${path}' is ${told(sizeBytes)} at the source and ${told(here)} here`,
      );
    }
    this.#bitmaps.check();
  }

  /** This machine's disks are as the source's were. Answers the source's run state. */
  apply(): RunStatus {
    const { status, disks } = this.assertWhole();
    for (const { path, isTrayOpen, ioStatus } of disks) {
      const device = this.#deviceAt(path);
      if (device) Object.assign(device, { isTrayOpen, ioStatus });
    }
    return status;
  }

  /** The machine is here: what has come may be used. */
  settle(): void {
    this.#bitmaps.settle();
  }

  /** The source writes to the disks no more. */
  async endExports(): Promise<void> {
    await this.#parts.exports.endNamed(this.#exports);
  }

  #deviceAt(path: string): GuestDevice | undefined {
    return [...this.#parts.devices.values()].find((device) => device.path === path);
  }
}

function json(name: string, value: object): Section {
  return { name, version: VERSION, bytes: Buffer.from(JSON.stringify(value)) };
}

function parse<T>(type: Type<T>, { bytes }: Section): T {
  return type.parse(JSON.parse(bytes.toString('utf8')) as JsonValue, '', 'qmp');
}
