import { BlockError } from '../base/error.js';
import type { JsonObject } from '../schema/types.js';
import type { DeviceModel } from './device-models.js';
import type { DriveInterface } from './drive.js';

/** How a device was asked for, so that it can be made again. */
export interface DeviceOrigin {
  readonly options: JsonObject;
  readonly mode: 'qmp' | 'keyval';
  readonly isOnBoard: boolean;
}

/** A device of the machine, a disk or not. */
export interface Plugged {
  readonly model: DeviceModel;
  readonly id: string | undefined;
  /** In QEMU's object tree. */
  readonly path: string;
  readonly bus: Bus | undefined;
  /** Its place in the order in which disks are booted from. */
  readonly bootIndex?: number;
  readonly brings: readonly Bus[];
  readonly origin?: DeviceOrigin;
  /** Its properties, as they were given. */
  readonly given?: JsonObject;
  isLeaving: boolean;
}

export interface Bus {
  readonly name: string;
  readonly kind: string;
  readonly takesHotPlug: boolean;
  /** Places on it; Infinity where nobody counts. */
  readonly places: number;
}

/** Where drives of an interface may sit: so many buses with so many units each. */
interface Places {
  readonly buses: number;
  readonly units: number;
}

interface Board {
  readonly buses: ReadonlyArray<readonly [kind: string, name: string, places: number]>;
  readonly drives: { readonly [kind in DriveInterface]?: Places };
}

const IDE = (count: number, places: number): Board['buses'] =>
  Array.from({ length: count }, (_, i) => ['IDE', `ide.${i}`, places] as const);
const LEGACY = [
  ['ISA', 'isa.0', Infinity],
  ['floppy-bus', 'floppy-bus.0', 2],
  ['i2c-bus', 'i2c', Infinity],
] as const;
const PLAIN = { floppy: { buses: 1, units: 2 }, pflash: { buses: 1, units: 2 } } as const;

const PC: Board = {
  buses: [['PCI', 'pci.0', Infinity], ...IDE(2, 2), ...LEGACY],
  drives: { ide: { buses: 2, units: 2 }, ...PLAIN },
};
const Q35: Board = {
  buses: [['PCI', 'pcie.0', Infinity], ...IDE(6, 1), ...LEGACY],
  drives: { ide: { buses: 6, units: 1 }, ...PLAIN },
};
const ISA: Board = { buses: [...IDE(2, 2), ...LEGACY], drives: PC.drives };
const MICROVM: Board = { buses: [['virtio-bus', 'virtio-mmio-bus.0', Infinity]], drives: {} };
const NOTHING: Board = { buses: [], drives: {} };

const BOARDS: ReadonlyArray<readonly [name: RegExp, board: Board]> = [
  [/^(pc|pc-i440fx-\d+\.\d+|xenfv|xenfv-\d\.\d+|xenpv)$/, PC],
  [/^(q35|pc-q35-\d+\.\d+(\.\d+)?)$/, Q35],
  [/^isapc$/, ISA],
  [/^microvm$/, MICROVM],
  [/^(none|x-remote)$/, NOTHING],
];

/** Buses whose devices are there from the start or not at all. */
const COLD = new Set(['IDE', 'ISA', 'floppy-bus', 'i2c-bus', 'System', '']);

/** Short names, and what QEMU 7.2 calls them in full. */
const FULL_NAMES: ReadonlyMap<string, string> = new Map([
  ['pc', 'pc-i440fx-7.2'],
  ['q35', 'pc-q35-7.2'],
]);

/** The machine as far as disks sit on it: its buses, and what has been plugged into them. */
export class Machine {
  readonly type: string;
  readonly devices = new Set<Plugged>();
  readonly #drives: Board['drives'];
  readonly #buses: Bus[];
  #anonymous = 0;
  #unattached = 0;

  /** Errors: invalid, in QEMU's words. */
  constructor(type = 'pc') {
    const board = BOARDS.find(([name]) => name.test(type))?.[1];
    if (!board)
      throw new BlockError('invalid', 'unsupported machine type', {
        hint: 'Use -machine help to list supported machines',
      });
    this.type = type;
    this.#drives = board.drives;
    this.#buses = board.buses.map(([kind, name, places]) => newBus(kind, name, places));
  }

  /** What the other end of a move knows its type by. */
  get fullName(): string {
    return FULL_NAMES.get(this.type) ?? this.type;
  }

  /** Where drives of that interface may sit; undefined: the machine has no such interface. */
  placesOf(kind: DriveInterface): Places | undefined {
    return this.#drives[kind];
  }

  find(idOrPath: string): Plugged | undefined {
    return [...this.devices].find(({ id, path }) => id === idOrPath || path === idOrPath);
  }

  /** The bus for a new device. `hot`: it comes while the machine is there. Errors: invalid, in QEMU's words. */
  busFor(model: DeviceModel, asked: string | undefined, hot: boolean): Bus | undefined {
    const bus = asked === undefined ? this.#anyBus(model) : this.#namedBus(model, asked);
    const takesHotPlug = bus?.takesHotPlug ?? !COLD.has(model.bus);
    if (hot && !takesHotPlug)
      throw new BlockError(
        'invalid',
        bus ? cold(bus.name) : `Device '${model.name}' does not support hotplugging`,
      );
    return bus;
  }

  #namedBus(model: DeviceModel, name: string): Bus {
    const bus = this.#buses.find((candidate) => candidate.name === name);
    if (!bus) throw new BlockError('invalid', `Bus '${name}' not found`);
    if (bus.kind !== model.bus)
      throw new BlockError('invalid', `Device '${model.name}' can't go on ${bus.kind} bus`);
    if (this.#isFull(bus)) throw new BlockError('limit', `Bus '${name}' is full`);
    return bus;
  }

  #anyBus(model: DeviceModel): Bus | undefined {
    if (model.bus === '' || model.bus === 'System') return undefined;
    // The one that came last comes first, as in QEMU.
    const buses = this.#buses.filter(({ kind }) => kind === model.bus).reverse();
    const bus = buses.find((candidate) => !this.#isFull(candidate));
    if (bus) return bus;
    const why = buses.length === 0 ? '' : ', but it is full';
    if (why !== '')
      throw new BlockError('limit', `No '${model.bus}' bus found for device '${model.name}'${why}`);
    throw new BlockError('invalid', `No '${model.bus}' bus found for device '${model.name}'`);
  }

  #isFull(bus: Bus): boolean {
    return [...this.devices].filter((device) => device.bus === bus).length >= bus.places;
  }

  /** The path that a new device gets. `isOnBoard`: it belongs to the machine, which names none of them. */
  newPath(id: string | undefined, isOnBoard = false): string {
    if (isOnBoard) return `/machine/unattached/device[${this.#unattached++}]`;
    return id === undefined
      ? `/machine/peripheral-anon/device[${this.#anonymous++}]`
      : `/machine/peripheral/${id}`;
  }

  /** The next device that is made without a name of its own gets this path. */
  nextPath(path: string): void {
    const [, place, number] = /^\/machine\/(unattached|peripheral-anon)\/device\[(\d+)\]$/.exec(path) ?? [];
    if (place === 'unattached') this.#unattached = Number(number);
    else if (place !== undefined) this.#anonymous = Number(number);
  }

  plug(device: Omit<Plugged, 'brings' | 'isLeaving'>): Plugged {
    const brings = device.model.brings.flatMap((kind) => this.#newBuses(kind, device.id));
    this.#buses.push(...brings);
    const plugged = { ...device, brings, isLeaving: false };
    this.devices.add(plugged);
    return plugged;
  }

  /** Errors: invalid where its bus keeps what it has. */
  assertMayLeave({ bus }: Plugged): void {
    if (bus && !bus.takesHotPlug) throw new BlockError('invalid', cold(bus.name));
  }

  /** Devices on the buses that this one brought. */
  childrenOf({ brings }: Plugged): Plugged[] {
    return [...this.devices].filter(({ bus }) => bus !== undefined && brings.includes(bus));
  }

  unplug(device: Plugged): void {
    this.devices.delete(device);
    for (const bus of device.brings) this.#buses.splice(this.#buses.indexOf(bus), 1);
  }

  #newBuses(kind: string, id: string | undefined): Bus[] {
    const count = kind === 'IDE' ? 6 : 1;
    return Array.from({ length: count }, (_, i) => newBus(kind, this.#newName(kind, id, i), Infinity));
  }

  /** A bus is named by its device and a number, a bridge's by its device alone. */
  #newName(kind: string, id: string | undefined, index: number): string {
    if (id !== undefined) return kind === 'PCI' ? id : `${id}.${index}`;
    const stem = kind.toLowerCase();
    let number = index;
    while (this.#buses.some(({ name }) => name === `${stem}.${number}`)) number++;
    return `${stem}.${number}`;
  }
}

function cold(name: string): string {
  return `Bus '${name}' does not support hotplugging`;
}

function newBus(kind: string, name: string, places: number): Bus {
  return { kind, name, places, takesHotPlug: !COLD.has(kind) };
}
