import { BlockError } from '../base/error.js';
import { MiB } from '../base/limits.js';
import type { Json } from '../block/driver.js';
import { COMMAND_LINE_OPTIONS } from '../schema/command-line-options.js';
import { given } from '../base/given.js';
import { QmpError } from '../wire/qmp/registry.js';
import type { UserObject } from '../block/objects/object.js';
import type { Memdev } from '../schema/machine.js';
import type { Parts } from './parts.js';
import { type Running, stop } from './run-state.js';

/** What a machine has that was not told. */
const DEFAULT_MEMORY_BYTES = 128 * MiB;
const NO_UUID = '00000000-0000-0000-0000-000000000000';

type Machine = Parts<'command' | 'emit' | 'identity' | 'actions' | 'quitting' | 'machine'> & Running;

/** What tools ask of a machine before they do anything. None runs here: it has no processors, memory or display. */
export function registerMachine(engine: Machine): void {
  const { identity, objects } = { identity: engine.identity, objects: engine.graph.objects };
  engine.command('query-name', () => ({ ...(identity.name !== undefined && { name: identity.name }) }));
  engine.command('query-uuid', () => ({ UUID: identity.uuid ?? NO_UUID }));
  engine.command('query-kvm', () => ({ enabled: false, present: false }));
  engine.command('query-target', () => ({ arch: 'x86_64' }));
  engine.command('query-machines', () => [...MACHINES]);
  // Where there is firmware with tables of power states.
  const isWoken = /^(pc|q35)($|-)/.test(engine.machine.type);
  engine.command('query-current-machine', () => ({ 'wakeup-suspend-support': isWoken }));
  engine.command('query-memory-size-summary', () => ({ 'base-memory': 0, 'plugged-memory': 0 }));
  engine.command('query-display-options', () => ({ type: 'none' }));
  engine.command('query-vnc', () => ({ enabled: false }));
  for (const name of EMPTY_LISTS) engine.command(name, () => []);
  engine.command('query-balloon', () => {
    assertHasBalloon(engine);
    return { actual: identity.memoryBytes ?? DEFAULT_MEMORY_BYTES };
  });
  // It is for the guest to do, and none runs.
  engine.command('balloon', ({ value }) => {
    assertHasBalloon(engine);
    if (value <= 0) throw new BlockError('invalid', "Parameter 'target' expects a size");
  });
  engine.command('query-hotpluggable-cpus', () => {
    throw new BlockError('unsupported', "The feature 'query-hotpluggable-cpus' is not enabled");
  });
  engine.command('query-memdev', () => objects.list().flatMap(memoryOf));
  engine.command('query-iothreads', () =>
    objects
      .list()
      .filter(({ type }) => type.name === 'iothread')
      .map((object) => ({ id: object.id, 'thread-id': process.pid, ...countsOf(object) }))
      .reverse(),
  );
  engine.command('query-command-line-options', ({ option }) => commandLineOptions(option));
  engine.command('system_reset', () => reset(engine));
  engine.command('set-action', ({ reboot, shutdown }) => {
    Object.assign(engine.actions, given({ reboot, shutdown }));
  });
  engine.command('system_powerdown', () => engine.emit('POWERDOWN', {}));
  engine.command('system_wakeup', () => {
    if (isWoken) throw new BlockError('invalid', 'Unable to wake up: guest is not in suspended state');
    throw new BlockError('unsupported', 'wake-up from suspend is not supported by this guest');
  });
}

/** The machine begins anew, or where a reset is an end, ends. */
async function reset(engine: Machine): Promise<void> {
  const cause = { guest: false, reason: 'host-qmp-system-reset' };
  if (engine.actions.reboot === 'reset') {
    engine.emit('RESET', cause);
    engine.runState.reset();
    return;
  }
  engine.emit('SHUTDOWN', cause);
  if (engine.actions.shutdown === 'pause') await stop(engine, 'shutdown');
  else engine.quitting.resolve();
}

/** Errors: device-not-active. */
function assertHasBalloon({ machine: { devices } }: Parts<'machine'>): void {
  if ([...devices].some(({ model }) => model.name.startsWith('virtio-balloon'))) return;
  throw new QmpError('DeviceNotActive', 'No balloon device has been activated');
}

const EMPTY_LISTS = [
  'query-cpu-definitions',
  'query-cpus-fast',
  'query-memory-devices',
  'query-mice',
  'query-pci',
  'query-pr-managers',
  'query-tpm',
  'query-tpm-models',
  'query-tpm-types',
  'query-vnc-servers',
] as const;

/** Types of machine whose command lines are taken. */
export const MACHINES = [
  machine('none', 1),
  machine('pc-i440fx-7.2', 255, { alias: 'pc', 'is-default': true }),
  machine('pc-q35-7.2', 288, { alias: 'q35' }),
  machine('isapc', 1),
  machine('microvm', 288),
];

function machine(name: string, processors: number, more: { [member: string]: Json } = {}) {
  const common = { 'hotpluggable-cpus': false, 'numa-mem-supported': false, deprecated: false };
  return { name, 'cpu-max': processors, ...common, ...more };
}

const MEMORY_MEMBERS = [
  'size',
  'merge',
  'dump',
  'prealloc',
  'share',
  'reserve',
  'host-nodes',
  'policy',
] as const;

/** What query-memdev tells of an object, if it is guest's memory. */
function memoryOf(object: UserObject): Memdev[] {
  if (!object.type.parents.includes('memory-backend')) return [];
  return [
    {
      id: object.id,
      ...Object.fromEntries(MEMORY_MEMBERS.map((name) => [name, object.get(name)])),
    } as Memdev,
  ];
}

const COUNTS = ['poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch'] as const;

function countsOf(object: { get(name: string): unknown }): { [name: string]: Json } {
  return Object.fromEntries(COUNTS.map((name) => [name, object.get(name) as Json]));
}

function commandLineOptions(option: string | undefined): Json[] {
  const names = Object.keys(COMMAND_LINE_OPTIONS).filter((name) => name === (option ?? name));
  if (names.length === 0) throw new BlockError('invalid', `invalid option name: ${option}`);
  return names.map((name) => ({
    option: name,
    parameters: Object.entries(COMMAND_LINE_OPTIONS[name] ?? {}).map(([parameter, type]) => ({
      name: parameter,
      type,
    })),
  }));
}
