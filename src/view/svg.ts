import { layOut, type Place } from './layout.js';
import { below, fileNameOf, type Image, type Job, type User, type View } from './model.js';
import { baseName } from './nodes.js';
import { markup, type Shape, shape } from './shape.js';
import {
  bracketed,
  clip,
  factsOf,
  NO_PART,
  paceText,
  type Part,
  partsOf,
  percentText,
  userText,
} from './words.js';

const BOX = { width: 176, height: 112 };
const FILTER_HEIGHT = 44;
const GAP = { x: 48, y: 30 };
const MARGIN = 20;
const LINE = 16;
const PILL = { width: 150, height: 24 };
const LETTERS = 24;
/** Below a lane, for an arrow and what stands on it; and what a job's pace takes more, in both. */
const JOB = { height: 40, apart: 14, pace: 16, paceApart: 20 };

/** Ages in a picture that lives. */
const LEAST_AGE_SECONDS = 10;
/** In a picture that lives, of so few lanes, each has room for an arrow before one comes: nothing moves then. */
const ROOMY_LANES = 4;

/** Of a picture that is a file of its own; a page brings its own. */
const STYLE = `
text{font:13px system-ui,sans-serif;fill:#1b1f24}.name{font-weight:600}.fact,.file{font-size:12px;fill:#4a5560}
.image rect.box{fill:#fff;stroke:#5b6774}.image.active rect.box{stroke:#0b5cad;stroke-width:2.5}.filter rect.box,.group rect.box{fill:#eef1f4;stroke:#5b6774;stroke-dasharray:4 3}
.image.warned rect.box{stroke:#9a5b00;stroke-width:2.5}.bar{fill:#d7dde3}.part{fill:#0b5cad}.link{stroke:#5b6774;fill:none;stroke-width:1.5}
.user rect{fill:#e3f0e6;stroke:#2d6a3e}.guest{stroke:#2d6a3e;fill:none;stroke-width:2}.job path{stroke:#8a3ffc;fill:none;stroke-width:4;stroke-opacity:.85}.job text{fill:#6929c4;font-weight:600;stroke:#f7f8f9;stroke-width:4;paint-order:stroke}
.head-link{fill:#5b6774}.head-guest{fill:#2d6a3e}.head-job{fill:#8a3ffc}svg{background:#f7f8f9}
@media (prefers-color-scheme:dark){svg{background:#14181c}text{fill:#e6eaee}.fact,.file{fill:#a9b4bf}.image rect.box{fill:#1f262d;stroke:#8b98a5}.filter rect.box,.group rect.box{fill:#262e36;stroke:#8b98a5}.image.active rect.box{stroke:#6cb0ff}.image.warned rect.box{stroke:#f0b429}.bar{fill:#39434d}.part{fill:#6cb0ff}.link{stroke:#8b98a5}.head-link{fill:#8b98a5}.user rect{fill:#1d3325;stroke:#7cc48f}.guest{stroke:#7cc48f}.head-guest{fill:#7cc48f}.job path{stroke:#be95ff}.job text{fill:#d4bbff;stroke:#14181c}.head-job{fill:#be95ff}}`;

/** The picture as a file. */
export function drawSvg(view: View): string {
  const picture = drawPicture(view);
  const style = shape('style', {}, STYLE_MARK);
  const text = markup({ ...picture, children: [style, ...picture.children] });
  // Style sheets are no text that is escaped.
  return `<?xml version="1.0" encoding="UTF-8"?>\n${text.replace(STYLE_MARK, STYLE)}\n`;
}

const STYLE_MARK = 'STYLE-OF-THE-PICTURE';

/** The picture for a page that has styles for its classes; images carry their id in `data-image`. */
export function drawPicture(view: View, { hasPace = false }: PictureOptions = {}): Shape {
  return new Picture(view, hasPace).draw();
}

export interface PictureOptions {
  /** What changes from look to look stands on the arrows of jobs, too: rates, time left. */
  readonly hasPace?: boolean;
}

interface Box {
  x: number;
  y: number;
  height: number;
}

class Picture {
  readonly #view: View;
  readonly #hasPace: boolean;
  readonly #images: ReadonlyMap<string, Image>;
  readonly #places: ReadonlyMap<string, Place>;
  readonly #parts = new Map<string, Part>();
  readonly #tops: ReadonlySet<string | undefined>;
  readonly #laneY: number[] = [];
  #width = 0;
  #height = 0;

  constructor(view: View, hasPace: boolean) {
    this.#view = view;
    this.#hasPace = hasPace;
    this.#images = new Map(view.images.map((image) => [image.id, image]));
    this.#places = layOut(view);
    this.#tops = new Set(view.chains.map(({ images }) => images.at(-1)));
    for (const chain of [...view.chains].reverse())
      for (const [i, part] of partsOf(chain).entries()) this.#parts.set(chain.images[i] ?? '', part);
  }

  draw(): Shape {
    this.#measure();
    const { images, jobs } = this.#view;
    const links = images.flatMap((image) =>
      image.children.map(({ role, id }) => this.#link(image, role, id)),
    );
    const shapes = [
      heads(),
      ...links.filter((link) => link !== undefined),
      ...images.map((image) => this.#image(image)),
      ...images.flatMap((image) => this.#users(image)),
      ...jobs.flatMap((job) => this.#job(job) ?? []),
    ];
    return shape(
      'svg',
      {
        xmlns: 'http://www.w3.org/2000/svg',
        viewBox: `0 0 ${this.#width} ${this.#height}`,
        width: this.#width,
        height: this.#height,
        role: 'group',
        'aria-label': 'The images of the disks and who uses them',
      },
      ...shapes,
    );
  }

  /** Lanes are as high as what stands in them: users below boxes, arrows of jobs. */
  #measure(): void {
    const lanes = this.#view.chains.map((_, lane) =>
      [...this.#places].filter(([, place]) => place.lane === lane),
    );
    let y = MARGIN;
    for (const [lane, members] of lanes.entries()) {
      this.#laneY[lane] = y;
      const users = Math.max(
        0,
        ...members.map(([id]) => this.#usersOf(id).length * (this.#tops.has(id) ? 0 : 1)),
      );
      const beside = Math.max(0, ...members.map(([id]) => this.#usersOf(id).length)) * (PILL.height + 4);
      const running = this.#view.jobs.filter((job) => this.#laneOf(job) === lane).length;
      const jobs = Math.max(running, this.#hasPace && lanes.length <= ROOMY_LANES ? 1 : 0);
      y +=
        Math.max(BOX.height + users * (PILL.height + 4), beside) +
        jobs * (JOB.height + (this.#hasPace ? JOB.pace : 0)) +
        GAP.y;
    }
    const columns = Math.max(0, ...[...this.#places.values()].map(({ column }) => column + 1));
    this.#width = 2 * MARGIN + columns * (BOX.width + GAP.x) + PILL.width;
    this.#height = y + MARGIN;
  }

  /** Below which its arrow runs. */
  #laneOf({ from, to }: Job): number {
    return Math.min(...[...from, to ?? ''].map((id) => this.#places.get(id)?.lane ?? Infinity));
  }

  #box(id: string): Box | undefined {
    const place = this.#places.get(id);
    if (!place) return undefined;
    const y = this.#laneY[place.lane] ?? 0;
    const height = this.#images.get(id)?.kind === 'image' ? BOX.height : FILTER_HEIGHT;
    return { x: MARGIN + place.column * (BOX.width + GAP.x), y: y + (BOX.height - height) / 2, height };
  }

  #image(image: Image): Shape {
    const { x, y, height } = this.#box(image.id) ?? { x: 0, y: 0, height: 0 };
    const part = this.#parts.get(image.id) ?? NO_PART;
    const top = this.#tops.has(image.id) && this.#usersOf(image.id).length > 0;
    const classes = [
      image.kind,
      ...(top ? ['active'] : []),
      ...(image.warnings.length > 0 ? ['warned'] : []),
    ];
    const told = [fileNameOf(image), ...image.warnings.map((warning) => `! ${warning}`)].join('\n');
    const lines = [
      ...(image.kind === 'image' ? [baseName(fileNameOf(image))] : []),
      ...factsOf(image, part, undefined, this.#hasPace ? LEAST_AGE_SECONDS : undefined),
    ].slice(0, height === BOX.height ? 5 : 1);
    // Above the bar there is room for four.
    const apart = lines.length > 4 ? LINE - 2 : LINE;
    return shape(
      'g',
      { class: classes.join(' '), transform: `translate(${x} ${y})`, 'data-image': image.id },
      shape('title', {}, told),
      shape('rect', { class: 'box', width: BOX.width, height, rx: 6 }),
      shape('text', { class: 'name', x: 10, y: 20 }, clip(bracketed(image), LETTERS)),
      ...lines.map((line, i) =>
        shape('text', { class: 'fact', x: 10, y: 20 + apart * (i + 1) }, clip(line, LETTERS)),
      ),
      ...(image.kind === 'image' ? bar(part.share, height) : []),
    );
  }

  /** Users of the top stand beside it, with the guest's arrow; of another image below it. */
  #users({ id }: Image): Shape[] {
    const box = this.#box(id);
    if (!box) return [];
    const isTop = this.#tops.has(id);
    return this.#usersOf(id).map((user, i) => {
      const x = isTop ? box.x + BOX.width + GAP.x : box.x + 12;
      const y = isTop ? box.y + i * (PILL.height + 4) + 8 : box.y + box.height + 8 + i * (PILL.height + 4);
      const arrow = isTop
        ? `M${x} ${y + PILL.height / 2}H${box.x + BOX.width + 7}`
        : `M${x + 10} ${y}V${box.y + box.height + 5}`;
      return shape(
        'g',
        { class: `user ${user.kind}` },
        shape('path', { class: 'guest', d: arrow, 'marker-end': 'url(#head-guest)' }),
        shape('rect', { x, y, width: PILL.width, height: PILL.height, rx: 12 }),
        shape('text', { x: x + 10, y: y + 17 }, clip(userText(user), 20)),
      );
    });
  }

  #usersOf(id: string): User[] {
    return this.#view.users.filter(({ imageId }) => imageId === id);
  }

  /** From an image to what is below it: `[A] <-- [B]`. */
  #link(image: Image, role: string, id: string): Shape | undefined {
    const [from, to] = [this.#box(image.id), this.#box(id)];
    if (!from || !to) return undefined;
    const isPrimary = below(image) === id || image.kind === 'group';
    const [x1, y1] = [from.x, from.y + from.height / 2];
    const [x2, y2] = [to.x + BOX.width + 7, to.y + to.height / 2];
    const d =
      y1 === y2 && isPrimary
        ? `M${x1} ${y1}H${x2}`
        : `M${x1} ${y1}C${x1 - 30} ${y1} ${x2 + 30} ${y2} ${x2} ${y2}`;
    const dash = isPrimary ? {} : { 'stroke-dasharray': '3 4' };
    return shape(
      'path',
      { class: 'link', d, 'marker-end': 'url(#head-link)', ...dash },
      shape('title', {}, role),
    );
  }

  #job(job: Job): Shape | undefined {
    const to = this.#box(job.to ?? '');
    const sources = job.from.flatMap((id) => this.#box(id) ?? []);
    const [first] = sources;
    if (!to || !first) return undefined;
    const order = this.#view.jobs.filter((one) => one.to === job.to).indexOf(job);
    // From the farthest, so that what lies between is seen to take part.
    const from = sources.reduce(
      (far, box) => (Math.abs(box.x - to.x) > Math.abs(far.x - to.x) ? box : far),
      first,
    );
    const [x1, y1, x2, y2] = [
      from.x + BOX.width / 2,
      from.y + from.height,
      to.x + BOX.width / 2,
      to.y + to.height + 9,
    ];
    const low = Math.max(y1, y2) + 26 + (JOB.apart + (this.#hasPace ? JOB.paceApart : 0)) * order;
    const d =
      y1 === y2 - 9 ? `M${x1} ${y1}C${x1} ${low} ${x2} ${low} ${x2} ${y2}` : this.#acrossLanes(from, to);
    const middle =
      y1 === y2 - 9
        ? { x: (x1 + x2) / 2, y: low + (this.#hasPace ? 8 : 0) }
        : { x: (x1 + x2) / 2 + 8, y: (from.y + to.y + BOX.height) / 2 };
    const pace = this.#hasPace ? paceText(job) : '';
    const line = (text: string, down: number): Shape =>
      shape('text', { x: middle.x, y: middle.y + down, 'text-anchor': 'middle' }, text);
    return shape(
      'g',
      { class: 'job', 'data-job': job.id },
      shape('path', { d, 'marker-end': 'url(#head-job)' }),
      line(`${clip(`${job.type} ${job.id}`, 28)} ${percentText(job.percent / 100)}`, 0),
      ...(pace === '' ? [] : [line(clip(pace, 72), LINE)]),
    );
  }

  #acrossLanes(from: Box, to: Box): string {
    const isDown = from.y < to.y;
    const [x1, x2] = [from.x + BOX.width / 2, to.x + BOX.width / 2];
    const y1 = isDown ? from.y + from.height : from.y;
    const y2 = isDown ? to.y - 9 : to.y + to.height + 9;
    const middle = (y1 + y2) / 2;
    return `M${x1} ${y1}C${x1} ${middle} ${x2} ${middle} ${x2} ${y2}`;
  }
}

function bar(share: number, height: number): Shape[] {
  const width = BOX.width - 20;
  return [
    shape('rect', { class: 'bar', x: 10, y: height - 11, width, height: 5, rx: 2 }),
    shape('rect', {
      class: 'part',
      x: 10,
      y: height - 11,
      width: Math.round(width * share),
      height: 5,
      rx: 2,
    }),
  ];
}

function heads(): Shape {
  const head = (name: string, size: number): Shape =>
    shape(
      'marker',
      {
        id: `head-${name}`,
        viewBox: '0 0 10 10',
        refX: 2,
        refY: 5,
        markerWidth: size,
        markerHeight: size,
        orient: 'auto-start-reverse',
        markerUnits: 'userSpaceOnUse',
      },
      shape('path', { class: `head-${name}`, d: 'M0 0L10 5L0 10Z' }),
    );
  return shape('defs', {}, head('link', 9), head('guest', 10), head('job', 14));
}
