import { useEffect, useRef, useState } from 'preact/hooks';
import uPlot from 'uplot';
import type { View } from '../../view/model.js';
import type { Action } from '../../view/plan/types.js';
import { humanBytes } from '../../view/progress-meter.js';
import { printable, userText } from '../../view/words.js';
import type { History } from './history.js';

const HEIGHT = 150;

/** Requests, throughput and latency of all disks together, and the rate of jobs, over the last minutes. */
export function Plots({
  history,
  version,
  view,
  isReadOnly,
  onPlan,
}: {
  history: History;
  version: number;
  view: View;
  isReadOnly: boolean;
  onPlan: (action: Action) => void;
}) {
  const devices = view.users.filter(({ qdev, imageId }) => qdev !== undefined && imageId !== undefined);
  const isCounted = devices.some(({ statistics }) => statistics?.read.latencies !== undefined);
  const hasPercentiles = PERCENTILES.some((name) => history.has(name));
  return (
    <section aria-label="plots">
      <h2>Last minutes</h2>
      <p class="quiet">{countedText(view)}</p>
      <div class="plots">
        <Plot
          title="requests a second"
          history={history}
          version={version}
          series={['reads', 'writes']}
          format={(n) => String(Math.round(n))}
          steps={stepsFrom(0)}
        />
        <Plot
          title="bytes a second"
          history={history}
          version={version}
          series={['readBytes', 'writeBytes', 'jobBytes', 'dirtyBytes']}
          format={humanBytes}
          steps={BYTE_STEPS}
        />
        <Plot
          title="mean latency, ms"
          history={history}
          version={version}
          series={['readMs', 'writeMs']}
          format={(n) => n.toFixed(2)}
          steps={stepsFrom(-2)}
        />
        {hasPercentiles && (
          <Plot
            title="latency percentiles of buckets, ms: the slowest disk's"
            history={history}
            version={version}
            series={PERCENTILES}
            format={(n) => (n < 1 ? n.toFixed(2) : String(Math.round(n)))}
            steps={stepsFrom(-2).filter((step) => step < 1 || Number.isInteger(step))}
          />
        )}
      </div>
      {devices.length > 0 && !isReadOnly && (
        <div class="buttons">
          <button type="button" onClick={() => onPlan({ kind: 'percentiles', isOn: !isCounted })}>
            {isCounted ? 'no more percentiles' : 'latency percentiles'}
          </button>
          {isCounted && !hasPercentiles && <span class="quiet">shown once there are requests</span>}
        </div>
      )}
    </section>
  );
}

/** Whose requests are plotted, and whose the server does not count. */
function countedText({ users, server }: View): string {
  const used = users.filter(({ kind, imageId }) => kind !== 'other' && imageId !== undefined);
  const counted = used.filter(({ statistics }) => statistics !== undefined);
  const others = used.filter(({ statistics }) => statistics === undefined);
  const named = (some: typeof used): string =>
    some.length > NAMED_USERS ? `${some.length} users` : printable(some.map(userText).join(', '));
  return [
    ...(used.length === 0 ? ['Nobody uses a disk: there are no requests to plot.'] : []),
    ...(counted.length > 0 ? [`Requests of ${named(counted)}.`] : []),
    ...(others.length > 0
      ? [
          `${printable(server.name)} has no figures for the requests of ${named(others)}: they are not plotted.`,
        ]
      : []),
  ].join(' ');
}

const NAMED_USERS = 6;

const PERCENTILES = ['readHalf', 'writeHalf', 'read99', 'write99'];

const LABELS: Readonly<Record<string, string>> = {
  ...{
    reads: 'read',
    writes: 'write',
    readBytes: 'read',
    writeBytes: 'write',
    jobBytes: 'jobs',
    dirtyBytes: 'dirtied',
    readMs: 'read',
    writeMs: 'write',
    readHalf: 'read 50%',
    writeHalf: 'write 50%',
    read99: 'read 99%',
    write99: 'write 99%',
  },
};
/** Told apart without colours, too: by their dashes. */
const LOOKS = [
  { stroke: '#0b5cad', dash: [] },
  { stroke: '#c2571a', dash: [8, 4] },
  { stroke: '#8a3ffc', dash: [2, 3] },
  { stroke: '#00796b', dash: [8, 3, 2, 3] },
];

/** 1, 2 and 5 times powers of ten, from that of `exponent` on. */
function stepsFrom(exponent: number): number[] {
  return Array.from({ length: 14 }, (_, i) => [1, 2, 5].map((n) => n * 10 ** (exponent + i))).flat();
}

const BYTE_STEPS = Array.from({ length: 48 }, (_, i) => 2 ** i);

function Plot({
  title,
  history,
  series,
  format,
  steps,
  version,
}: {
  title: string;
  history: History;
  series: readonly string[];
  format: (value: number) => string;
  /** Between two lines of the scale; no smaller than what `format` shows, or two lines would be called the same. */
  steps: number[];
  version: number;
}) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const isDark = useDark();
  useEffect(() => {
    if (!holder.current) return undefined;
    const element = holder.current;
    const made = new uPlot(
      optionsOf({ series, format, steps, history, width: element.clientWidth }),
      history.data(series),
      element,
    );
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
    };
  }, [history, isDark]);
  useEffect(() => plot.current?.setData(history.data(series)), [version, history]);
  return (
    <figure>
      <figcaption>{title}</figcaption>
      <div ref={holder} />
    </figure>
  );
}

const DARK = matchMedia('(prefers-color-scheme: dark)');

/** What is drawn on a canvas has to be drawn anew when the colours change. */
function useDark(): boolean {
  const [isDark, setDark] = useState(DARK.matches);
  useEffect(() => {
    const change = (): void => setDark(DARK.matches);
    DARK.addEventListener('change', change);
    return () => DARK.removeEventListener('change', change);
  }, []);
  return isDark;
}

function optionsOf({
  series,
  format,
  steps,
  history,
  width,
}: Pick<Parameters<typeof Plot>[0], 'series' | 'format' | 'steps' | 'history'> & {
  width: number;
}): uPlot.Options {
  const [least = 1] = steps;
  const ink = getComputedStyle(document.body).color;
  const axis = { stroke: ink, grid: { stroke: '#8884', width: 1 }, ticks: { stroke: '#8888' } };
  return {
    width,
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    legend: { live: true },
    scales: {
      // A minute at least; not what is passed in, which of one moment alone is years around it.
      x: { range: ({ data: [moments] }) => rangeOf(moments) },
      y: { range: (_plot, _min, max) => [0, Math.max(max * 1.1, least)] },
    },
    axes: [
      { ...axis, space: 70, values: (_plot, moments) => moments.map(clockText) },
      { ...axis, size: 70, incrs: steps, values: (_plot, values) => values.map(format) },
    ],
    series: [
      { value: (_plot, moment) => (moment === null ? '–' : clockText(moment)) },
      ...series.map((name, i) => ({
        label: LABELS[name] ?? name,
        width: 2,
        // Moments without a neighbour are no line.
        ...(/Ms$|Half$|99$/.test(name) && { points: { show: true, size: 4 } }),
        ...LOOKS[i],
        value: (_: uPlot, value: number | null) => (value === null ? '–' : format(value)),
      })),
    ],
    hooks: { draw: [(plot) => drawMarks(plot, history, ink)] },
  };
}

/** From the first moment, or a minute before the last one, to that. */
function rangeOf(moments: ArrayLike<number>): [number, number] {
  const last = moments[moments.length - 1] ?? 0;
  return [Math.min(moments[0] ?? 0, last - 60), last];
}

function clockText(seconds: number): string {
  return new Date(seconds * 1000).toTimeString().slice(0, 8);
}

/** Events stand as lines where they happened. */
function drawMarks(plot: uPlot, history: History, ink: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ink;
  ctx.fillStyle = ink;
  ctx.textBaseline = 'top';
  ctx.textAlign = 'left';
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  let free = -Infinity;
  for (const { seconds, name } of history.marks) {
    const x = plot.valToPos(seconds, 'x', true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.globalAlpha = 0.4;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    const width = ctx.measureText(name).width;
    // Where there is no room for a name, the line alone stands.
    if (x < free || x + width > bbox.left + bbox.width) continue;
    ctx.globalAlpha = 1;
    ctx.fillText(name, x + 3 * devicePixelRatio, bbox.top + 2 * devicePixelRatio);
    free = x + width + 8 * devicePixelRatio;
  }
  ctx.restore();
}
