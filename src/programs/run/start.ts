import type { CharacterDevice } from '../../attach/character-device.js';
import { MuxDevice, MuxEnd } from '../../attach/mux-device.js';
import { TerminalDevice } from '../../attach/socket-device.js';
import { BlockError } from '../../base/error.js';
import { descriptorNumber } from '../../host/descriptor-number.js';
import type { HostSocket } from '../../host/host.js';
import { openCharacterDevice } from '../../monitor/chardevs.js';
import { addDevice } from '../../monitor/devices.js';
import { addDrive } from '../../monitor/drives.js';
import type { Engine } from '../../monitor/engine.js';
import { listenFor } from '../../monitor/migration.js';
import { loadVm } from '../../monitor/vm-snapshots.js';
import { type PassedSession, QmpSession } from '../../wire/qmp/session.js';
import { HumanMonitor } from './human-monitor.js';
import { multiplex } from './multiplexer.js';
import { type RunOptions, withContext } from './options.js';
import type { Step } from './step.js';
import { addOnBoardDisks, addVirtioDisks, type Placed } from './on-board.js';
import { StdioSocket } from './stdio.js';

/**
 * Does all that a command line asks for, and what the machine brings by itself; `whole` comes when all is there but clients.
 * Errors: they name the option.
 */
export async function start(
  engine: Engine,
  options: Pick<RunOptions, 'steps' | 'incoming' | 'loadvm'>,
  whole: () => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const isEarly = ({ kind }: Step): boolean => !['device', 'monitor', 'multiplexed'].includes(kind);
  const isMachine = engine.kind === 'machine';
  const early = options.steps.filter((step) => !isMachine || isEarly(step));
  const late = isMachine ? options.steps.filter((step) => !isEarly(step)) : [];
  const drives: Placed[] = [];
  const monitors = new Monitors(engine);
  const { graph } = engine;
  // On a command line descriptors have numbers; clients name those that they pass.
  const { descriptorOf } = graph;
  graph.descriptorOf = descriptorNumber;
  for (const step of early)
    await inStep(engine, step.text, async () => {
      if (step.kind === 'drive')
        drives.push({ drive: await addDrive(engine, step.options), text: step.text });
      else await perform(engine, step, monitors);
    });
  await addOnBoardDisks(engine, drives);
  const devices = late.filter(({ kind }) => kind === 'device');
  for (const step of devices) await inStep(engine, step.text, () => perform(engine, step, monitors));
  await addVirtioDisks(engine, drives);
  for (const step of late)
    if (step.kind !== 'device') await inStep(engine, step.text, () => perform(engine, step, monitors));
  graph.descriptorOf = descriptorOf;
  const { incoming, loadvm } = options;
  if (incoming !== undefined)
    await inStep(engine, `-incoming ${incoming}`, () => listenFor(engine, incoming));
  if (loadvm === undefined) {
    await whole();
    monitors.open();
    return;
  }
  // Clients are greeted, as by QEMU, and their commands wait for the state.
  await engine.hub.inBand(async () => {
    monitors.open();
    await loadVm(engine, loadvm);
    await whole();
  });
}

/** What goes wrong, and what is warned of, names the option. */
async function inStep(engine: Engine, text: string, body: () => Promise<void>): Promise<void> {
  if (text === '') return body();
  const { opener } = engine;
  const { onWarning } = opener;
  opener.onWarning = (warning) => engine.warn(`${text}: warning: ${warning}`);
  try {
    await body();
  } catch (error) {
    throw withContext(text, error);
  } finally {
    opener.onWarning = onWarning;
  }
}

async function perform(engine: Engine, step: Step, monitors: Monitors): Promise<void> {
  switch (step.kind) {
    case 'object':
      return void (await engine.graph.objects.add(step.options));
    case 'descriptor':
      return engine.host.files.descriptorSets.adopt(step.fd, step.setId, step.opaque);
    case 'blockdev':
      return void (await engine.openNode(step.options));
    case 'nbd-server':
      return engine.exports.startServer(step.address, step.properties);
    case 'export':
      return void (await engine.execute('block-export-add', step.options));
    case 'drive':
      return void (await addDrive(engine, step.options));
    case 'device':
      return addDevice(engine, step.options, { mode: step.mode, hot: false });
    case 'chardev': {
      const { id, backend, maxClients } = step.device;
      const inform = (text: string): void => engine.warn(`${step.text}: ${text}`);
      const open = (): Promise<CharacterDevice> =>
        openCharacterDevice(engine, id, backend, maxClients, inform);
      const device = await engine.characterDevices.add(id, open);
      if (device instanceof TerminalDevice)
        engine.print(`char device redirected to ${device.path} (label ${id})`);
      return;
    }
    case 'monitor':
      return monitors.add(step);
    case 'multiplexed':
      return monitors.addMultiplexed();
    case 'wrong':
      throw step.error;
  }
}

type MonitorStep = Extract<Step, { kind: 'monitor' }>;

/** They are opened when all else is there, so that who connects finds it. */
class Monitors {
  readonly #engine: Engine;
  readonly #openings = new Map<CharacterDevice | 'terminal', Array<() => void>>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Errors: not-found; busy. */
  add({ chardev, isControl, pretty }: MonitorStep): void {
    const engine = this.#engine;
    const device = engine.characterDevices.find(chardev);
    if (!device) throw new BlockError('not-found', `chardev "${chardev}" not found`);
    const openings = this.#openings.get(device) ?? [];
    if (openings.length > 0 && !(device instanceof MuxDevice))
      throw new BlockError('busy', `Device '${chardev}' is in use`);
    const serve = (connection: HostSocket, passed?: PassedSession): void => {
      if (isControl) new QmpSession(engine.hub, connection, { pretty, ...(passed && { passed }) });
      else serveHuman(engine, connection);
    };
    openings.push(() => device.attach({ serve, isEditor: !isControl }));
    this.#openings.set(device, openings);
  }

  addMultiplexed(): void {
    const engine = this.#engine;
    if (this.#openings.has('terminal'))
      throw new BlockError('busy', 'cannot use stdio by multiple character devices');
    const open = (write: (text: string) => void): HumanMonitor => new HumanMonitor(engine, write);
    const quit = (): void => engine.quitting.resolve();
    this.#openings.set('terminal', [
      () => multiplex(new StdioSocket({ isEditor: true, hasSignals: false }), { open, quit }),
    ]);
  }

  open(): void {
    for (const open of [...this.#openings.values()].flat()) open();
  }
}

function serveHuman(engine: Engine, connection: HostSocket): void {
  let isOpen = true;
  const write = (text: string): void => {
    if (isOpen) connection.write(Buffer.from(text.replaceAll('\n', '\r\n')));
  };
  const monitor = new HumanMonitor(engine, write);
  if (connection instanceof MuxEnd)
    connection.focus = { onFocus: () => monitor.showAgain(), onFocusLost: () => write('\n') };
  connection.start({
    onData: (chunk) => monitor.push(chunk),
    onClose: () => void (isOpen = false),
  });
}
