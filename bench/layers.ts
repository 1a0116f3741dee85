import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { layerPath, makeLayers } from './layered.js';
import { isSkipped, missing, seconds } from './measure.js';
import { bareMiB, peakMiB } from './memory.js';
import { fio } from './nbd.js';
import type { Peer } from './peer.js';
import { nbdUri, serveNbd, type Server, type Side } from './servers.js';

const LAYERS = [1, 10, 100, 500, 1000];
const DEPTHS = [1, 32];
const RUN_SECONDS = 3;
/** Reads before those that count: what is learned of the layers on the way is learned by then. */
const WARM_UP_SECONDS = 10;
const OPEN_WAIT_MS = 300_000;

/**
 * A disk of 64 GiB whose 16 GiB of data lie scattered over many layers: how long it takes to open, what memory it takes above
 * the bare program's (ours: above that of node), and random reads, of one disk after another.
 */
export async function benchLayers(peer: Peer, folder: string): Promise<void> {
  if (isSkipped('layers', [...peer.lacks('qemu-nbd'), ...missing('fio')])) return;
  const bare = await bareMiB();
  const columns = ['open s', 'MiB', ...DEPTHS.map((depth) => `depth ${depth}`), 'MiB then'];
  process.stdout.write(`\n64 GiB over many layers; 4 KiB random reads a second${line('', columns)}`);
  for (const layers of LAYERS) {
    const own = join(folder, String(layers));
    mkdirSync(own);
    makeLayers(own, layers);
    for (const side of ['peer', 'ours'] as const) {
      const name = `${layers} layers, ${side === 'peer' ? peer.name() : 'livedisk'}`;
      process.stdout.write(line(name, await measure(peer, side, own, layers, side === 'peer' ? 0 : bare)));
    }
    rmSync(own, { recursive: true });
  }
}

async function measure(
  peer: Peer,
  side: Side,
  folder: string,
  layers: number,
  bare: number,
): Promise<string[]> {
  const image = layerPath(folder, layers - 1);
  let server: Server | undefined;
  const openSeconds = await seconds(async () => {
    server = await serveNbd(peer, side, folder, image, 'qcow2', OPEN_WAIT_MS);
  });
  if (!server) return [];
  try {
    const cells = [openSeconds.toFixed(2), (peakMiB(server.pid) - bare).toFixed(0)];
    const uri = nbdUri(side, folder);
    await fio(uri, ['', 'randread', '4k', 32], WARM_UP_SECONDS);
    for (const depth of DEPTHS)
      cells.push((await fio(uri, ['', 'randread', '4k', depth], RUN_SECONDS)).toFixed(0));
    cells.push((peakMiB(server.pid) - bare).toFixed(0));
    return cells;
  } finally {
    await server.stop();
  }
}

function line(name: string, cells: readonly string[]): string {
  return `\n${name.padEnd(44)}${cells.map((cell) => cell.padStart(10)).join('')}`;
}
