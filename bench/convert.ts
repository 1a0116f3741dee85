import { join } from 'node:path';
import { rmSync } from 'node:fs';
import { makeImage, type Pattern, syncFile } from './images.js';
import { cpuSecondsOfEndedChildren } from './machine.js';
import { compare, heading, isSkipped, type Rounds, runAsync, type Sample, seconds } from './measure.js';
import type { Peer } from './peer.js';
import { PROGRAM } from './servers.js';

const MiB = 1024 * 1024;

/** `img convert` against qemu-img, the result on disk at the end. */
export async function benchConvert(
  peer: Peer,
  place: string,
  folder: string,
  dataMiB: number,
  rounds: Rounds,
): Promise<void> {
  if (isSkipped('convert', peer.lacks('qemu-img'))) return;
  heading(`convert, ${place}, ${dataMiB} MiB`, peer.name());
  for (const pattern of ['dense', 'scattered'] as const satisfies readonly Pattern[]) {
    for (const [from, to] of [
      ['raw', 'qcow2'],
      ['qcow2', 'raw'],
      ['qcow2', 'qcow2'],
      ['raw', 'raw'],
    ] as const) {
      const source = join(folder, `source.${from}`);
      const target = join(folder, `target.${to}`);
      await makeImage(peer, folder, `source.${from}`, from, 4 * dataMiB * MiB, dataMiB * MiB, pattern);
      const args = ['convert', '-f', from, '-O', to, source, target];
      const measure = (program: readonly string[]) => async (): Promise<Sample> => {
        rmSync(target, { force: true });
        const cpuBefore = cpuSecondsOfEndedChildren();
        const runSeconds = await seconds(() => runAsync([...program, ...args]));
        const cpu = cpuSecondsOfEndedChildren() - cpuBefore;
        const syncSeconds = await seconds(async () => syncFile(target));
        return { figure: runSeconds + syncSeconds, cpu, syncSeconds };
      };
      await compare(
        {
          name: `${from} to ${to}, ${pattern}`,
          unit: 's',
          better: 'less',
          peer: measure(peer.argv('qemu-img')),
          ours: measure([process.execPath, PROGRAM, 'img']),
        },
        rounds,
      );
      rmSync(source);
      rmSync(target);
    }
  }
}
