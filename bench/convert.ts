import { join } from 'node:path';
import { rmSync } from 'node:fs';
import { makeImage, type Pattern, syncFile } from './images.js';
import { compare, heading, missing, runAsync, seconds } from './measure.js';
import { PROGRAM } from './servers.js';

const MiB = 1024 * 1024;

/** `img convert` against qemu-img, the result on disk at the end. */
export async function benchConvert(
  place: string,
  folder: string,
  dataMiB: number,
  rounds: number,
): Promise<void> {
  const lacking = missing('qemu-img');
  if (lacking.length > 0) return void process.stdout.write('convert: skipped, not installed: qemu-img\n');
  heading(`convert, ${place}, ${dataMiB} MiB`, 'qemu-img');
  for (const pattern of ['dense', 'scattered'] as const satisfies readonly Pattern[]) {
    for (const [from, to] of [
      ['raw', 'qcow2'],
      ['qcow2', 'raw'],
      ['qcow2', 'qcow2'],
      ['raw', 'raw'],
    ] as const) {
      const source = join(folder, `source.${from}`);
      const target = join(folder, `target.${to}`);
      await makeImage(folder, `source.${from}`, from, 4 * dataMiB * MiB, dataMiB * MiB, pattern);
      const args = ['convert', '-f', from, '-O', to, source, target];
      const measure = (program: readonly string[]) => async () => {
        rmSync(target, { force: true });
        return seconds(async () => {
          await runAsync(program[0] ?? '', [...program.slice(1), ...args]);
          syncFile(target);
        });
      };
      await compare(
        {
          name: `${from} to ${to}, ${pattern}`,
          unit: 's',
          better: 'less',
          peer: measure(['qemu-img']),
          ours: measure([process.execPath, PROGRAM, 'img']),
        },
        rounds,
      );
      rmSync(source);
      rmSync(target);
    }
  }
}
