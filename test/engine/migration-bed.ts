import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { deferred, type Deferred } from '../../src/base/async.js';
import type { EngineProperties } from '../../src/monitor/engine.js';
import type { JsonObject } from '../../src/schema/types.js';
import { type FrameCut, Relay } from '../kit/relay.js';
import { EngineBed } from './engine-bed.js';

/** A machine with a disk of its own, and another one that waits for it. Each has its image; or both have the source's. */
export class MigrationBed {
  readonly source: EngineBed;
  readonly destination: EngineBed;
  readonly warnings: string[] = [];

  private constructor(
    context: TestContext,
    source: Partial<EngineProperties>,
    destination: Partial<EngineProperties>,
  ) {
    const warn = (text: string): void => void this.warnings.push(text);
    this.source = new EngineBed(context, { warn, ...source });
    this.destination = new EngineBed(context, { warn, incoming: true, ...destination });
  }

  /** Both have device virtio0 on node A of the same image, with 0x11 in its first MiB. */
  static async shared(
    context: TestContext,
    more: { source?: Partial<EngineProperties>; destination?: Partial<EngineProperties> } = {},
  ): Promise<MigrationBed> {
    const bed = new MigrationBed(context, more.source ?? {}, more.destination ?? {});
    const { source, destination } = bed;
    await source.image('A');
    await source.device('A');
    await source.guest('write -P 0x11 0 1M');
    const file = { driver: 'file', filename: source.path('A.qcow2') };
    await destination.engine.addNode({ driver: 'qcow2', 'node-name': 'A', file });
    await destination.device('A');
    for (const end of [source, destination]) await setCapabilities(end, 'events');
    return bed;
  }

  get uri(): string {
    return `unix:${this.destination.path('move')}`;
  }

  async listen(): Promise<void> {
    await this.destination.execute('migrate-incoming', { uri: this.uri });
  }

  /** All of a move; both ends have come to theirs. */
  async move(): Promise<void> {
    await this.listen();
    await this.source.execute('migrate', { uri: this.uri });
    await this.source.engine.moves.source.ended;
  }
}

export async function setCapabilities(bed: EngineBed, ...names: string[]): Promise<void> {
  const capabilities = names.map((capability) => ({ capability, state: true }));
  await bed.execute('migrate-set-capabilities', { capabilities });
}

/** Events of a machine that are about its life, in short. */
export function life(bed: EngineBed): string[] {
  const names = ['STOP', 'RESUME', 'RESET', 'SHUTDOWN', 'MIGRATION', 'MIGRATION_PASS', 'X_MOVE'];
  return bed.events
    .filter(({ event }) => names.includes(event))
    .map(
      ({ event, data: { status, pass, owner } }) =>
        `${(status ?? pass ?? owner ?? event) as string | number}`,
    );
}

export async function statusOf(bed: EngineBed): Promise<string> {
  return ((await bed.execute('query-status')) as { status: string }).status;
}

/** Resolves when an event has come that `matches`. */
export async function untilEvent(
  bed: EngineBed,
  name: string,
  matches: (data: JsonObject) => boolean = () => true,
): Promise<void> {
  const found = (): boolean => bed.events.some(({ event, data }) => event === name && matches(data));
  while (!found()) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(found());
}

/** A destination keeps, from now on, that it has the machine no sooner than `goOn`; `kept` tells as what. */
export function holdKeeping({ engine }: EngineBed): {
  begun: Promise<void>;
  goOn: Deferred<void>;
  kept: string[];
} {
  const { graph, moves } = engine;
  const [begun, goOn] = [deferred(), deferred()];
  const kept: string[] = [];
  graph.keeper = {
    describe: () => moves.destination.arrivesAs ?? '',
    keep: async (described) => {
      if (described === '') return;
      begun.resolve();
      await goOn.promise;
      kept.push(described);
    },
  };
  return { begun: begun.promise, goOn, kept };
}

/** A move through a link that does at `frame` what is told there. */
export async function moveThrough(
  t: TestContext,
  frame?: FrameCut,
): Promise<{ bed: MigrationBed; relay: Relay }> {
  const bed = await MigrationBed.shared(t);
  const { source, destination } = bed;
  await bed.listen();
  const { host } = source.engine;
  const [here, there] = [source.path('link'), destination.path('move')];
  const relay = new Relay(host, { type: 'unix', path: here }, { type: 'unix', path: there });
  await relay.open();
  t.after(() => relay.close());
  if (frame) relay.cutBefore(frame);
  await source.execute('migrate', { uri: `unix:${here}` });
  return { bed, relay };
}
