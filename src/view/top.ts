import { type Image, imageOf, type Job, type User, type View } from './model.js';
import { humanBytes } from './progress-meter.js';
import { wayDown } from './plan/change.js';
import type { DiskRates } from './rates.js';
import { type Paint, painter, type TextOptions } from './text.js';
import { bracketed, clip, flowText, pad, printable, progressText, userText, warningLines } from './words.js';

export interface TopView {
  readonly view: View;
  readonly disks: ReadonlyMap<string, DiskRates>;
}

const NAME_WIDTH = 20;
const BAR_CELLS = 30;

export interface TopOptions extends TextOptions {
  /** What is to be said first. */
  note?: string | undefined;
}

/** One frame of the live view: what guests do to their disks, and what jobs do; none yet: a note alone. Lines without their ends. */
export function drawTop(top: TopView | undefined, options: TopOptions = {}): string[] {
  const { columns = 80, isColoured = false, note } = options;
  const colour = painter(isColoured);
  // Where the terminal would break a line in two, all below it would be out of place.
  const paint: Paint = (style, text) => colour(style, clip(text, columns));
  const notes = note === undefined ? [] : [paint('warning', printable(note)), ''];
  return top ? [...notes, ...frame(top, paint, (text) => clip(text, columns))] : notes;
}

function frame({ view, disks }: TopView, paint: Paint, fit: (text: string) => string): string[] {
  const { name, runState } = view.server;
  const images = new Map(view.images.map((image) => [image.id, image]));
  const lines = [paint('name', printable(runState === undefined ? name : `${name}, ${runState}`)), ''];
  lines.push(
    paint('dim', `${pad('disk', NAME_WIDTH)}    read/s             ms   write/s             ms  flush/s`),
  );
  for (const user of view.users) lines.push(fit(diskLine(user, view, disks.get(user.id))));
  if (view.users.length === 0) lines.push('nobody uses a disk');
  lines.push('', ...(view.jobs.length === 0 ? [paint('dim', 'no jobs')] : []));
  for (const job of view.jobs) {
    const [what = '', ...more] = jobLines(job, images);
    lines.push(paint('job', what), ...more.map(fit));
  }
  const warnings = warningLines(view);
  if (warnings.length > 0) lines.push('', ...warnings.map((line) => paint('warning', `! ${line}`)));
  return lines;
}

function diskLine(user: User, view: View, rates: DiskRates | undefined): string {
  const image = imageOf(view, user.imageId);
  const name = pad(
    clip(`${userText(user)} ${image ? bracketed(shownBy(image, view)) : '(empty)'}`, NAME_WIDTH),
    NAME_WIDTH,
  );
  if (!rates) return user.statistics ? `${name}  ${totals(user)}` : `${name}  not counted`;
  const { readOperations, readBytes, readLatencyMs, writeOperations, writeBytes, writeLatencyMs, flushes } =
    rates;
  return [
    name,
    ...rateColumns(readOperations, readBytes, readLatencyMs),
    ...rateColumns(writeOperations, writeBytes, writeLatencyMs),
    String(Math.round(flushes)).padStart(7),
  ].join(' ');
}

/** The image that is seen through filters on top of it. */
function shownBy(image: Image, view: View): Image {
  return wayDown(view, image.id).find(({ kind }) => kind !== 'filter') ?? image;
}

function rateColumns(operations: number, bytes: number, latencyMs: number | undefined): string[] {
  return [
    String(Math.round(operations)).padStart(9),
    humanBytes(bytes).padStart(9),
    (latencyMs === undefined ? '-' : latencyMs.toFixed(latencyMs < 10 ? 2 : 0)).padStart(4),
  ];
}

function totals({ statistics }: User): string {
  if (!statistics) return '';
  const { read, write } = statistics;
  return `${read.count} reads, ${humanBytes(read.bytes)}; ${write.count} writes, ${humanBytes(write.bytes)}`;
}

function jobLines(job: Job, images: ReadonlyMap<string, Image>): string[] {
  const cells = Math.round((job.percent / 100) * BAR_CELLS);
  const error = job.error === undefined ? '' : `: ${printable(job.error)}`;
  return [
    `${printable(job.type)} ${printable(job.id)}  ${flowText(job, images)}`,
    `  [${'#'.repeat(cells)}${'.'.repeat(BAR_CELLS - cells)}] ${progressText(job)}`,
    `  ${printable(job.phase)}${error}`,
  ];
}
