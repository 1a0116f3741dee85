import type { CommandResult } from '../../schema/commands.js';
import { baseName } from '../../view/nodes.js';
import { humanBytes } from '../../view/progress-meter.js';
import { pad, printable, widthOf } from '../../view/words.js';

type PointList = CommandResult<'x-point-list'>;
type Disk = PointList['disks'][number];
type Plan = CommandResult<'x-point-create'>['plan'];

/** The points of each disk, oldest first, and what it is now. */
export function listText({ disks, queue }: PointList): string {
  if (disks.length === 0) return 'no disks\n';
  const waiting =
    queue.length > 0 ? [`being deleted, in this order: ${queue.map(printable).join(', ')}`, ''] : [];
  return `${[...waiting, ...disks.flatMap((disk, i) => [...(i > 0 ? [''] : []), ...diskLines(disk)])].join('\n')}\n`;
}

function diskLines(disk: Disk): string[] {
  const rows = disk.points.map(({ name, created, state, file, bytes, why }) => [
    printable(name),
    timeText(created),
    printable(state),
    file === undefined ? '-' : printable(baseName(file)),
    bytes === undefined ? '' : humanBytes(bytes),
    why === undefined ? '' : printable(why),
  ]);
  rows.push(['(now)', '', '', printable(baseName(disk.file)), '', '']);
  const title = `${printable(disk.disk)}: ${disk.points.length} ${disk.points.length === 1 ? 'point' : 'points'}`;
  const elsewhere = disk['active-elsewhere'];
  return [
    title,
    ...table(rows).map((line) => `    ${line}`),
    ...(elsewhere === undefined
      ? []
      : [`! this is not the disk as it is now: its active image is ${printable(elsewhere)}`]),
  ];
}

function table(rows: readonly string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((row) => widthOf(row[i] ?? ''))));
  return rows.map((row) =>
    row
      .map((cell, i) => pad(cell, (widths[i] ?? 0) + 2))
      .join('')
      .trimEnd(),
  );
}

/** As ISO 8601 has it, in UTC. */
function timeText(seconds: number): string {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? '?' : date.toISOString().replace('T', ' ').replace('.000Z', ' UTC');
}

/** What will happen, or has. */
export function planText({ words, bytes, seconds, ends, invalid, users }: Plan): string {
  const lines = words.map(printable);
  if (bytes > 0) lines.push(`copied at most: ${humanBytes(bytes)}, about ${seconds} s`);
  if (ends.length > 0) lines.push(`not needed any more: ${ends.map(printable).join(', ')}`);
  if (invalid.length > 0) lines.push(`not right any more: ${invalid.map(printable).join('; ')}`);
  if (users.length > 0) lines.push(`used by: ${users.map(printable).join(', ')}`);
  return lines.map((line) => `${line}\n`).join('');
}
