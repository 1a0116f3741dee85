import { BlockError } from '../../base/error.js';
import { isPowerOfTwo } from '../../base/align.js';
import type { MigrateSetParameters, MigrationParameters } from '../../schema/migration.js';
import { checkMapping } from './bitmap-mapping.js';

/** QEMU's defaults. */
const DEFAULTS: MigrationParameters = {
  'announce-initial': 50,
  'announce-max': 550,
  'announce-rounds': 5,
  'announce-step': 100,
  'compress-level': 1,
  'compress-threads': 8,
  'compress-wait-thread': true,
  'decompress-threads': 2,
  'throttle-trigger-threshold': 50,
  'cpu-throttle-initial': 20,
  'cpu-throttle-increment': 10,
  'cpu-throttle-tailslow': false,
  'tls-creds': '',
  'tls-hostname': '',
  'tls-authz': '',
  'max-bandwidth': 128 * 1024 * 1024,
  'downtime-limit': 300,
  'x-checkpoint-delay': 20_000,
  'block-incremental': false,
  'multifd-channels': 2,
  'xbzrle-cache-size': 64 * 1024 * 1024,
  'max-postcopy-bandwidth': 0,
  'max-cpu-throttle': 99,
  'multifd-compression': 'none',
  'multifd-zlib-level': 1,
  'multifd-zstd-level': 1,
};

const MIN_PAGE_BYTES = 4096;
const MAX_DOWNTIME_MS = 2_000_000;

/** Bounds as QEMU words them: names have underscores there. */
const VALUES: ReadonlyArray<readonly [name: keyof MigrationParameters, least: number, most: number]> = [
  ['announce-initial', 0, 100_000],
  ['announce-max', 0, 100_000],
  ['announce-rounds', 0, 1000],
  ['compress-level', 0, 9],
  ['compress-threads', 1, 255],
  ['decompress-threads', 1, 255],
  ['multifd-channels', 1, 255],
];
const RANGES: typeof VALUES = [
  ['throttle-trigger-threshold', 1, 100],
  ['cpu-throttle-initial', 1, 99],
  ['cpu-throttle-increment', 1, 99],
];

/** How machines are moved. */
export class Parameters {
  #values: MigrationParameters = DEFAULTS;

  get values(): MigrationParameters {
    return this.#values;
  }

  /** Those that are not as they were at first. */
  get changed(): Partial<MigrationParameters> {
    const defaults: { [name: string]: unknown } = DEFAULTS;
    return Object.fromEntries(
      Object.entries(this.#values).filter(([name, value]) => defaults[name] !== value),
    );
  }

  /** All of them or none. Errors: kind invalid, in QEMU's words. */
  set(changes: MigrateSetParameters): void {
    const values = { ...this.#values } as { [name: string]: unknown };
    for (const [name, value] of Object.entries(changes)) values[name] = value ?? '';
    const next = values as MigrationParameters;
    check(next);
    this.#values = next;
  }
}

function check(values: MigrationParameters): void {
  const refuse = (name: string, expects: string): never => {
    throw new BlockError('invalid', `Parameter '${name.replaceAll('-', '_')}' expects ${expects}`);
  };
  for (const [name, least, most] of VALUES)
    if (!isWithin(values[name], least, most)) refuse(name, `a value between ${least} and ${most}`);
  if (!isWithin(values['announce-step'], 1, 10_000)) refuse('announce-step', 'a value between 0 and 10000');
  for (const [name, least, most] of RANGES)
    if (!isWithin(values[name], least, most)) refuse(name, `an integer in the range of ${least} to ${most}`);
  if (!isWithin(values['max-cpu-throttle'], values['cpu-throttle-initial'], 99))
    refuse('max-cpu-throttle', 'an integer in the range of cpu_throttle_initial to 99');
  if (!isWithin(values['downtime-limit'], 0, MAX_DOWNTIME_MS))
    refuse('downtime-limit', 'an integer in the range of 0 to (2000 * 1000) ms');
  const cache = values['xbzrle-cache-size'];
  if (typeof cache !== 'number' || cache < MIN_PAGE_BYTES || !isPowerOfTwo(cache))
    refuse('xbzrle-cache-size', 'a power of two no less than the target page size');
  const mapping = values['block-bitmap-mapping'];
  if (mapping) checkMapping(mapping);
}

function isWithin(value: unknown, least: number, most: number): boolean {
  return typeof value === 'number' && value >= least && value <= most;
}
