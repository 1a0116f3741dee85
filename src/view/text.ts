import { type Chain, fileNameOf, type Image, type Job, type User, type View } from './model.js';
import { baseName } from './nodes.js';
import { humanBytes } from './progress-meter.js';
import {
  bracketed,
  clip,
  factsOf,
  flowText,
  NO_PART,
  pad,
  partsOf,
  printable,
  progressText,
  userText,
  warningLines,
  widthOf,
} from './words.js';

export interface TextOptions {
  /** Default 80. */
  columns?: number;
  /** Colours by escape sequences of ANSI terminals. */
  isColoured?: boolean;
}

type Style = 'name' | 'job' | 'warning' | 'dim';
export type Paint = (style: Style, text: string) => string;

const CODES: Readonly<Record<Style, string>> = { name: '1', job: '36', warning: '33', dim: '2' };
const MARGIN = '    ';
const ARROW = ' <-- ';
const WIDEST_COLUMN = 28;

export function painter(isColoured: boolean): Paint {
  return isColoured ? (style, text) => `\x1b[${CODES[style]}m${text}\x1b[0m` : (_style, text) => text;
}

/** The whole view: each chain base first with the guest on its right, jobs, and what there is to warn of. */
export function drawText(view: View, options: TextOptions = {}): string {
  const { columns = 80, isColoured = false } = options;
  const paint = painter(isColoured);
  const pen = new Pen(view, columns, paint);
  const { name, runState } = view.server;
  const title = printable(runState === undefined ? name : `${name}, ${runState}`);
  const blocks = [[paint('name', clip(title, columns))], ...view.chains.map((chain) => pen.chain(chain))];
  const empty = view.users.filter(({ imageId }) => imageId === undefined).map(userText);
  if (empty.length > 0) blocks.push([clip(`${MARGIN}empty: ${empty.join(', ')}`, columns)]);
  if (view.jobs.length > 0) blocks.push(view.jobs.flatMap((job) => pen.job(job)));
  const warnings = warningLines(view);
  if (warnings.length > 0) blocks.push(warnings.map((line) => paint('warning', clip(`! ${line}`, columns))));
  if (view.images.length === 0) blocks.push([`${MARGIN}no images`]);
  return blocks.map((lines) => lines.join('\n')).join('\n\n');
}

/** The chains alone. */
export function drawChains(view: View, { columns = 80, isColoured = false }: TextOptions = {}): string {
  const pen = new Pen(view, columns, painter(isColoured));
  return view.chains.map((chain) => pen.chain(chain).join('\n')).join('\n\n');
}

interface Column {
  image: Image;
  /** Below one another; the first is the name. */
  lines: string[];
  width: number;
  /** Where it begins in its row. */
  at: number;
}

class Pen {
  readonly #view: View;
  readonly #images: ReadonlyMap<string, Image>;
  readonly #columns: number;
  readonly #paint: Paint;
  /** What was drawn is not told again where it is shared. */
  readonly #seen = new Set<string>();

  constructor(view: View, columns: number, paint: Paint) {
    this.#view = view;
    this.#images = new Map(view.images.map((image) => [image.id, image]));
    this.#columns = columns;
    this.#paint = paint;
  }

  chain(chain: Chain): string[] {
    const { images, group } = chain;
    const parts = partsOf(chain);
    const layers = images.flatMap((id) => this.#images.get(id) ?? []);
    const diskBytes = layers.at(-1)?.virtualBytes;
    const columns = layers.map((image, i) => {
      const facts = factsOf(image, parts[i] ?? NO_PART, diskBytes);
      return this.#column(image, facts, i === layers.length - 1);
    });
    const rows = this.#rows(columns);
    const top = layers.at(-1);
    const users = top ? this.#usersOf(top) : [];
    const upper = group === undefined ? undefined : this.#images.get(group);
    const owner = upper ? [`of ${bracketed(upper)}`] : [];
    const lines = rows.flatMap((row, i) =>
      this.#row(row, i === 0, i === rows.length - 1 ? [...owner, ...users] : []),
    );
    const title = `${printable(titleOf(layers, this.#view))} (${humanBytes(diskBytes ?? 0)})`;
    return [clip(title, this.#columns), ...lines];
  }

  #column(image: Image, facts: readonly string[], isTop: boolean): Column {
    const lines = [bracketed(image)];
    if (this.#seen.has(image.id)) lines.push('(above)');
    else {
      if (image.kind === 'image' && image.label !== baseName(fileNameOf(image)))
        lines.push(printable(baseName(fileNameOf(image))));
      lines.push(...facts);
      if (!isTop) for (const user of this.#usersOf(image)) lines.push(`<== ${user}`);
    }
    this.#seen.add(image.id);
    const most = Math.min(WIDEST_COLUMN, this.#columns - MARGIN.length - ARROW.length);
    const clipped = lines.map((line) => clip(line, most));
    return { image, lines: clipped, width: Math.max(...clipped.map(widthOf)), at: 0 };
  }

  /** As many columns a row as there is room for. */
  #rows(columns: readonly Column[]): Column[][] {
    const rows: Column[][] = [];
    let end = Infinity;
    for (const column of columns) {
      if (end + ARROW.length + column.width > this.#columns) {
        rows.push([]);
        column.at = MARGIN.length + (rows.length > 1 ? ARROW.length - 1 : 0);
      } else column.at = end + ARROW.length;
      rows.at(-1)?.push(column);
      end = column.at + column.width;
    }
    return rows;
  }

  #row(row: readonly Column[], isFirst: boolean, users: readonly string[]): string[] {
    const height = Math.max(...row.map(({ lines }) => lines.length));
    const names = row.map(
      (column) =>
        this.#paint('name', column.lines[0] ?? '') +
        ' '.repeat(column.width - widthOf(column.lines[0] ?? '')),
    );
    const head = `${MARGIN}${isFirst ? '' : ARROW.slice(1)}${names.join(ARROW)}`.trimEnd();
    const end = (row.at(-1)?.at ?? 0) + widthOf(row.at(-1)?.lines[0] ?? '');
    const beside = users.length > 0 ? ` <== ${users.join(', ')}` : '';
    const isBeside = end + widthOf(beside) <= this.#columns;
    const lines = [isBeside ? head + beside : head];
    for (let i = 1; i < height; i++)
      lines.push(this.#paint('dim', placed(row.map((column) => [column.at, column.lines[i] ?? '']))));
    for (const job of this.#view.jobs) {
      const arrow = arrowOf(job, row);
      if (arrow !== undefined) lines.push(this.#paint('job', arrow));
    }
    if (!isBeside) lines.push(...users.map((user) => `${MARGIN}<== ${clip(user, this.#columns - 8)}`));
    return lines;
  }

  #usersOf({ id }: Image): string[] {
    return this.#view.users.filter(({ imageId }) => imageId === id).map(userText);
  }

  job(job: Job): string[] {
    const limit = job.speedLimit > 0 ? `  at most ${humanBytes(job.speedLimit)}/s` : '';
    const error = job.error === undefined ? '' : `: ${printable(job.error)}`;
    const what = `${printable(job.type)} ${printable(job.id)}  ${flowText(job, this.#images)}`;
    const takes = job.verbs.length > 0 ? `; takes ${job.verbs.join(', ')}` : '';
    const fit = (line: string): string => clip(line, this.#columns);
    return [
      this.#paint('job', fit(what)),
      fit(`${MARGIN}${progressText(job)}${limit}`),
      fit(`${MARGIN}${printable(job.phase)}${error}${takes}`),
    ];
  }
}

/** The user of a chain's top, or the top. */
function titleOf(layers: readonly Image[], { users }: View): string {
  const top = layers.at(-1);
  const user: User | undefined = users.find(({ imageId }) => imageId === top?.id);
  return user ? user.label : (top?.label ?? '');
}

function placed(parts: ReadonlyArray<readonly [at: number, text: string]>): string {
  let line = '';
  for (const [at, text] of parts) line = pad(line, at) + text;
  return line.trimEnd();
}

/** From the images that flow to the one they flow into, when all are in this row. */
function arrowOf({ id, percent, from, to }: Job, row: readonly Column[]): string | undefined {
  const find = (image: string | undefined): Column | undefined =>
    row.find((column) => column.image.id === image);
  const target = find(to);
  const sources = from.map(find);
  if (!target || sources.length === 0 || sources.includes(undefined)) return undefined;
  const all = [target, ...(sources as Column[])];
  const start = Math.min(...all.map(({ at }) => at)) + 1;
  const end = Math.max(...all.map(({ at, lines }) => at + widthOf(lines[0] ?? ''))) - 1;
  const isRightward = target.at > Math.max(...(sources as Column[]).map(({ at }) => at));
  const label = clip(` ${printable(id)} ${percent}% `, Math.max(0, end - start - 4));
  const shaft = end - start - 1 - widthOf(label);
  const left = '='.repeat(Math.max(1, Math.floor(shaft / 2)));
  const right = '='.repeat(Math.max(1, shaft - left.length));
  return ' '.repeat(start) + (isRightward ? `${left}${label}${right}>` : `<${left}${label}${right}`);
}
