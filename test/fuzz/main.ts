import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { Watchdog } from '../sim/watchdog.js';
import { ClientUnderFuzz } from './nbd-client.js';
import { ServerUnderFuzz } from './nbd-server.js';
import { ParsersUnderFuzz } from './parsers.js';
import { VhostUnderFuzz } from './vhost-user.js';

/** Conversations at a time; after each batch all must be as before. */
const BATCH = 16;
const LONGEST_BATCH_SECONDS = 120;
/** What a process may keep beyond what it had after the first batches. */
const MOST_GROWTH_BYTES = 192 * 1024 * 1024;
const WARM_UP_BATCHES = 20;

/** What meets peers who say anything. */
export interface UnderFuzz {
  /** One conversation; ends in any case. */
  meet(random: SeededRandom): Promise<void>;
  /** Nothing is left of those that have ended, and an honest peer is served. */
  check(): Promise<void>;
  close(): Promise<void>;
}

const SIDES = {
  'nbd-server': ServerUnderFuzz,
  'nbd-client': ClientUnderFuzz,
  'vhost-user': VhostUnderFuzz,
  parsers: ParsersUnderFuzz,
} as const;

/** Threads of Node's have an eventfd each, and open it when they like. */
const MOST_THREADS = 8;

interface OpenDescriptors {
  /** Sockets and memory, which only peers bring. */
  ofPeers: number;
  events: number;
}

function openDescriptors(): OpenDescriptors {
  const targets = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      // It was the listing's own.
      return '';
    }
  });
  const count = (pattern: RegExp): number => targets.filter((target) => pattern.test(target)).length;
  return { ofPeers: count(/^(socket:|\/memfd:)/), events: count(/^anon_inode:\[eventfd/) };
}

/** Waits until what peers have brought is gone. */
async function untilClosed(first: OpenDescriptors, seed: number): Promise<void> {
  for (let tries = 0; ; tries++) {
    const { ofPeers, events } = openDescriptors();
    if (ofPeers <= first.ofPeers && events <= first.events + MOST_THREADS) return;
    const now = `after the batch of ${seed} ${ofPeers} sockets and memories are open, and ${events} events`;
    assert.ok(tries < 6000, `${now}; at first ${first.ofPeers} and ${first.events}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** `SIDE [--seed N] [--runs N]`: conversations on real sockets, each of one seed. */
async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { seed: { type: 'string' }, runs: { type: 'string' } },
  });
  const [side = ''] = positionals;
  const Side = SIDES[side as keyof typeof SIDES];
  assert.ok(Side, `one of ${Object.keys(SIDES).join(', ')} is to be named`);
  const first = values.seed === undefined ? randomInt(1, 2 ** 31) : Number(values.seed);
  const runs = Number(values.runs ?? 1000);
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-fuzz-'));
  const watchdog = new Watchdog(LONGEST_BATCH_SECONDS);
  console.log(`${side}: conversations from ${first}`);
  const under = await Side.start(folder);
  const descriptors = openDescriptors();
  let warmBytes = Infinity;
  for (let done = 0; done < runs; done += BATCH) {
    watchdog.begin(first + done);
    const count = Math.min(BATCH, runs - done);
    const seeds = Array.from({ length: count }, (_, i) => first + done + i);
    await Promise.all(
      seeds.map((seed) =>
        under.meet(new SeededRandom(seed)).catch((error: unknown) => {
          throw new Error(`seed ${seed}`, { cause: error });
        }),
      ),
    );
    await under.check();
    const rss = process.memoryUsage.rss();
    if (done === BATCH * WARM_UP_BATCHES) warmBytes = rss;
    assert.ok(rss - warmBytes < MOST_GROWTH_BYTES, `the process has grown to ${rss} from ${warmBytes} bytes`);
    await untilClosed(descriptors, first + done);
  }
  await watchdog.end();
  await under.close();
  rmSync(folder, { recursive: true });
  console.log(
    `${runs} conversations passed, ${Math.round(process.memoryUsage.rss() / 2 ** 20)} MiB in the end`,
  );
}

await main();
