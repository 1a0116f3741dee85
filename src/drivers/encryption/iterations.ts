import { BlockError } from '../../base/error.js';
import { passwordKey } from '../../codec/index.js';
import type { Host } from '../../host/host.js';
import type { Hash } from './cipher.js';

/** The specification's least (LUKS_MKD_ITERATIONS_MIN). */
const LEAST = 1000;
const MOST = 2 ** 31 - 1;
/** Less is told by no clock; more than so many are not asked for at once. */
const MEASURED_MS = 10;
const MOST_MEASURED = 2 ** 22;
const FIRST_MEASURED = 2 ** 13;

/** As many as take so long on this machine, for a key of so many bytes. Errors: invalid. */
export async function passwordIterations(
  host: Host,
  hash: Hash,
  keyBytes: number,
  timeMs: number,
): Promise<number> {
  if (timeMs < 0) throw new BlockError('invalid', "Parameter 'iter-time' expects a positive number");
  if (timeMs === 0) return LEAST;
  const input = Buffer.from('password');
  const salt = Buffer.alloc(32, 1);
  for (let iterations = FIRST_MEASURED; ; iterations *= 4) {
    const startMs = host.clock.nowMs();
    const parameters = { hash, salt, iterations };
    await host.compute.run({ function: passwordKey, input, output: Buffer.alloc(keyBytes), parameters });
    const tookMs = host.clock.nowMs() - startMs;
    if (tookMs < MEASURED_MS && iterations < MOST_MEASURED) continue;
    const perMs = iterations / Math.max(tookMs, MEASURED_MS);
    return Math.min(MOST, Math.max(LEAST, Math.round(perMs * timeMs)));
  }
}
