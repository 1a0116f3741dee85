import type { MovePlan, WholeMoveInfo } from '../../schema/move.js';
import { humanBytes } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';

/** What a move will do, line by line. */
export function planText(plan: MovePlan): string {
  const disks = plan.disks.map(
    ({ device, node, export: name, length, data }) =>
      `${printable(device)} (${printable(node)}) to export ${printable(name)}: ${humanBytes(data)} of ${humanBytes(length)}\n`,
  );
  const bitmaps = plan.bitmaps.map(({ node, name }) => `bitmap ${printable(name)} of ${printable(node)}\n`);
  const roundTrip = (plan['round-trip-us'] / 1000).toFixed(1);
  const forecast = `a round trip takes ${roundTrip} ms; the guest would rest for ${plan['forecast-stop-ms']} ms at least\n`;
  return [...disks, ...bitmaps, forecast].join('');
}

/** How far it is, on one line. */
export function progressLine({ stage, disks, 'forecast-stop-ms': stopMs }: WholeMoveInfo): string {
  const [done, left, rate] = (['done', 'left', 'rate'] as const).map((key) =>
    disks.reduce((sum, disk) => sum + disk[key], 0),
  ) as [number, number, number];
  const percent = done + left === 0 ? '' : ` ${Math.floor((100 * done) / (done + left))} %`;
  const amount =
    disks.length === 0 ? '' : ` (${humanBytes(done)}, ${humanBytes(left)} left, ${humanBytes(rate)}/s)`;
  const stop = stopMs === undefined ? '' : `; the guest would rest for ${stopMs} ms`;
  return `${printable(stage)}${percent}${amount}${stop}`;
}
