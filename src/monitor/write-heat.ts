import { BlockError } from '../base/error.js';
import { findDevice } from '../block/find-node.js';
import type { Node } from '../block/node.js';
import {
  DEFAULT_HALF_LIFE_MS,
  type HeatOptions,
  MOST_REGIONS,
  type PassedHeat,
  usualRegionBytes,
  WriteHeat,
} from '../block/write-heat.js';
import type { HostClock, HostTimer } from '../host/host.js';
import type { CommandResult } from '../schema/commands.js';
import type { Parts } from './parts.js';

type Engine = Parts<'graph' | 'host' | 'devices'>;

/** Nobody has asked for so long: nothing is counted any more. */
const FORGOTTEN_MS = 30_000;
/** Different questions about one node, each of which costs its writes something. */
const MOST_HEATS = 4;
const LEAST_REGION_BYTES = 512;

export function registerWriteHeat(engine: Engine & Parts<'command' | 'heats'>): void {
  engine.command('x-query-write-heat', async ({ node, region, 'half-life': halfLife }) => {
    // What is written through a filter is written to what it shows.
    const disk = (engine.devices.get(node)?.backend.node ?? findDevice(engine.graph, node)).skipFilters();
    return answerOf(engine, engine.heats.of(disk, checked(disk, region, halfLife)));
  });
}

function answerOf({ host }: Engine, heat: WriteHeat): CommandResult<'x-query-write-heat'> {
  const { regionBytes, halfLifeMs, sinceMs } = heat;
  const regions: Array<{ start: number; rate: number }> = [];
  for (const [i, rate] of heat.read().entries())
    if (rate >= 1) regions.push({ start: i * regionBytes, rate: Math.round(rate) });
  const counted = Math.round(host.clock.nowMs() - sinceMs);
  return { region: regionBytes, 'half-life': halfLifeMs, counted, regions };
}

/** How something is counted. */
type Way = Required<Pick<HeatOptions, 'regionBytes' | 'halfLifeMs'>>;

/** Errors: invalid, for a region or half-life that cannot be. */
function checked(
  { lengthBytes }: Node,
  regionBytes = usualRegionBytes(lengthBytes),
  halfLifeMs = DEFAULT_HALF_LIFE_MS,
): Way {
  if (regionBytes < LEAST_REGION_BYTES || !Number.isInteger(Math.log2(regionBytes)))
    throw new BlockError('invalid', `'region' is a power of two from ${LEAST_REGION_BYTES}`);
  if (halfLifeMs < 1) throw new BlockError('invalid', "'half-life' is at least 1 ms");
  return { regionBytes, halfLifeMs };
}

/** What is counted for clients, each as long as one asks for it. */
export class KeptHeats {
  readonly #clock: HostClock;
  readonly #ofNodes = new WeakMap<Node, Set<WriteHeat>>();
  readonly #timers = new WeakMap<WriteHeat, HostTimer>();

  constructor(clock: HostClock) {
    this.#clock = clock;
  }

  list(node: Node): WriteHeat[] {
    return [...(this.#ofNodes.get(node) ?? [])];
  }

  /** One of another process goes on here, as long as somebody asks for it. */
  restore(node: Node, way: Way, passed: PassedHeat): void {
    const heat = this.#begin(node, way);
    heat.goOnFrom(passed);
    this.#asked(heat);
  }

  /** The one that counts so already, or a new one. Errors: invalid, for too many regions; busy, for too many ways. */
  of(node: Node, way: Way): WriteHeat {
    const heat = this.#find(node, way) ?? this.#start(node, way);
    this.#asked(heat);
    return heat;
  }

  #asked(heat: WriteHeat): void {
    this.#timers.get(heat)?.cancel();
    this.#timers.set(
      heat,
      this.#clock.setTimer(FORGOTTEN_MS, () => heat.stop()),
    );
  }

  #find(node: Node, { regionBytes, halfLifeMs }: Way): WriteHeat | undefined {
    return [...(this.#ofNodes.get(node) ?? [])].find(
      (heat) => heat.askedRegionBytes === regionBytes && heat.halfLifeMs === halfLifeMs,
    );
  }

  #start(node: Node, way: Way): WriteHeat {
    if (this.list(node).length >= MOST_HEATS)
      throw new BlockError('busy', `'${node.label}' is counted in ${MOST_HEATS} ways already`);
    // The layer that was active until a snapshot, say, is the same disk.
    const former = [...node.chain()]
      .slice(1)
      .flatMap((layer) => this.#find(layer, way) ?? [])
      .at(0);
    // A disk that has grown since the first question has larger ones, and who asks goes on.
    if (!former && node.lengthBytes / way.regionBytes > MOST_REGIONS)
      throw new BlockError('invalid', `'region' gives more than ${MOST_REGIONS} regions`);
    const heat = this.#begin(node, way);
    if (former) heat.takeOver(former);
    return heat;
  }

  #begin(node: Node, way: Way): WriteHeat {
    const own = this.#ofNodes.get(node) ?? new Set();
    this.#ofNodes.set(node, own);
    const heat = WriteHeat.start(node, this.#clock, {
      ...way,
      onStop: () => {
        own.delete(heat);
        this.#timers.get(heat)?.cancel();
      },
    });
    own.add(heat);
    return heat;
  }
}
