import { createHash } from 'node:crypto';
import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { Host } from '../../host/host.js';
import { assertKept } from '../../monitor/drives.js';
import type { Engine } from '../../monitor/engine.js';
import { StateKeeper } from '../../monitor/state/keeper.js';
import { restoreEngine } from '../../monitor/state/restore.js';
import { StateStore } from '../../monitor/state/store.js';
import type { ObjectOptions } from '../../schema/objects.js';
import type { EngineState } from '../../schema/state.js';
import { formatJson } from '../../wire/qmp/json-format.js';
import type { DaemonProgram } from '../../monitor/takeover.js';
import { composeEngine, startProperties, type StartProperties } from './compose.js';
import { DEFAULT_MACHINE, type RunOptions } from './options.js';
import type { Step } from './step.js';
import { start } from './start.js';

/** How a daemon begins. */
export interface DaemonStart {
  readonly engine: Engine;
  /** What another process needs to take its place. */
  readonly program: Omit<DaemonProgram, 'handedOver' | 'folder'>;
  /** Makes it what it is to be, and lets clients in. */
  start(boot?: () => Promise<void>): Promise<void>;
  close(): Promise<void>;
}

/** What a daemon begins with: its command line, or what is kept of it in the folder of --state. */
export class NewDaemon implements DaemonStart {
  readonly engine: Engine;
  readonly #options: RunOptions;
  readonly #store: StateStore | undefined;
  readonly #saved: EngineState | undefined;

  private constructor(
    compose: (properties: StartProperties) => Engine,
    { options, store, saved }: { options: RunOptions; store?: StateStore; saved?: EngineState | undefined },
  ) {
    this.engine = compose(saved ? propertiesOf(saved) : startProperties(options));
    this.#options = options;
    this.#store = store;
    this.#saved = saved;
  }

  /** Errors: invalid, when the command line asks for something else than is kept; those of the store. */
  static async open(
    host: Host,
    kind: EngineState['kind'],
    options: RunOptions,
    warn: (text: string) => void,
  ): Promise<NewDaemon> {
    const compose = (properties: StartProperties): Engine => composeEngine(host, kind, properties, warn);
    if (options.state === undefined) return new NewDaemon(compose, { options });
    for (const step of options.steps) if (step.kind === 'drive') assertKept(step.options);
    const store = await StateStore.open(host, options.state);
    try {
      const saved = await store.read();
      if (saved) checkAsked(kind, options, saved);
      return new NewDaemon(compose, { options, store, saved });
    } catch (error) {
      await store.close();
      throw error;
    }
  }

  /** What another process needs to take this one's place. */
  get program(): Omit<DaemonProgram, 'handedOver' | 'folder'> {
    const saved = this.#saved;
    const monitors = saved ?? monitorsOf(this.#options.steps);
    return {
      askedDigest: saved?.askedDigest ?? digestOf(this.#options),
      monitors: monitors.monitors,
      isMultiplexed: monitors.isMultiplexed,
      ...(this.#store && { stateFolder: this.#store.folder, stateLock: this.#store.lock }),
    };
  }

  /**
   * Does what the command line asks for, or makes what was kept; keeps it from then on. `whole` comes when all is there but
   * clients. Errors: those of all.
   */
  async start(whole: () => Promise<void>): Promise<void> {
    const { engine } = this;
    const store = this.#store;
    if (!store) return start(engine, this.#options, whole);
    const saved = this.#saved;
    const keep = async (options: Pick<RunOptions, 'steps'>): Promise<void> => {
      const askedDigest = saved?.askedDigest ?? digestOf(this.#options);
      const program = { askedDigest, ...monitorsOf(options.steps) };
      await StateKeeper.begin(store, engine, program, saved !== undefined);
      await whole();
    };
    if (!saved) return start(engine, this.#options, () => keep(this.#options));
    const secrets = new Map<string, ObjectOptions>();
    for (const step of this.#options.steps) {
      if (step.kind === 'descriptor')
        engine.host.files.descriptorSets.adopt(step.fd, step.setId, step.opaque);
      if (isSecret(step)) secrets.set(step.options.id, step.options);
    }
    await restoreEngine(engine, saved, secrets);
    const steps = monitorSteps(saved);
    return start(engine, { steps, incoming: undefined, loadvm: undefined }, () => keep({ steps }));
  }

  async close(): Promise<void> {
    await this.#store?.close();
  }
}

/** Those of an engine that is to be what a state says. */
export function propertiesOf(saved: EngineState): StartProperties {
  const { machine, reboot, shutdown, name, uuid, memoryBytes } = saved;
  const { protectsSharedBases: refuses, sharedBasesFolders: folders } = saved;
  return {
    machine,
    startStopped: true,
    actions: { reboot, shutdown },
    baseProtection: { refuses, folders },
    identity: given({ name, uuid, memoryBytes }),
  };
}

function isSecret(step: Step): step is Extract<Step, { kind: 'object' }> {
  return step.kind === 'object' && step.options['qom-type'] === 'secret';
}

/** What is asked of a new daemon only: what has to be given each time is not of it. */
function askedSteps({ steps }: RunOptions): Step[] {
  return steps.filter((step) => step.kind !== 'descriptor' && !isSecret(step));
}

function digestOf(options: RunOptions): string {
  const { machine, name, uuid, memoryBytes, startStopped, actions, loadvm } = options;
  const steps = askedSteps(options).map((step) =>
    step.kind === 'object' ? formatJson(step.options) : `${step.kind} ${step.text}`,
  );
  const asked = { machine, name, uuid, memoryBytes, startStopped, actions, steps, ...given({ loadvm }) };
  return createHash('sha256').update(formatJson(asked)).digest('hex');
}

/** What is kept counts, and who asks for something else must know. Errors: invalid. */
function checkAsked(kind: EngineState['kind'], options: RunOptions, saved: EngineState): void {
  const { state, steps, incoming, name, uuid, memoryBytes, startStopped, machine, loadvm } = options;
  for (const step of steps) if (step.kind === 'wrong') throw step.error;
  const where = `The state in '${state}'`;
  if (saved.kind !== kind) {
    const program = saved.kind === 'machine' ? 'livedisk run' : 'livedisk storage-daemon';
    throw new BlockError('invalid', `${where} is one of ${program}`);
  }
  if (incoming !== undefined)
    throw new BlockError(
      'invalid',
      `${where} is of a machine that is here: -incoming does not go together with it`,
    );
  const isBare =
    [name, uuid, memoryBytes, loadvm].every((value) => value === undefined) &&
    !startStopped &&
    machine === DEFAULT_MACHINE;
  if (isBare && askedSteps(options).length === 0) return;
  if (digestOf(options) === saved.askedDigest) return;
  const text = `${where} is of a daemon that was started with other options: give those, or none of them, or another folder`;
  throw new BlockError('invalid', text);
}

function monitorsOf(steps: readonly Step[]): Pick<EngineState, 'monitors' | 'isMultiplexed'> {
  const monitors = steps.flatMap((step) => {
    if (step.kind !== 'monitor') return [];
    const { chardev, isControl, pretty } = step;
    return [{ chardev, isControl, pretty }];
  });
  return { monitors, isMultiplexed: steps.some(({ kind }) => kind === 'multiplexed') };
}

/** Of character devices that are there already. */
export function monitorSteps({ chardevs, monitors, isMultiplexed }: EngineState): Step[] {
  const there = new Set(chardevs.map(({ id }) => id));
  return [
    ...monitors
      .filter(({ chardev }) => there.has(chardev))
      .map((monitor): Step => ({ kind: 'monitor', ...monitor, text: `-mon ${monitor.chardev}` })),
    ...(isMultiplexed ? [{ kind: 'multiplexed', text: '-serial mon:stdio' } as const] : []),
  ];
}
