import { useEffect, useRef } from 'preact/hooks';
import uPlot from 'uplot';
import type { View } from '../../view/model.js';
import type { Action } from '../../view/plan/types.js';
import { humanBytes } from '../../view/progress-meter.js';
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
      <div class="plots">
        <Plot
          title="requests a second"
          history={history}
          version={version}
          series={['reads', 'writes']}
          format={(n) => String(Math.round(n))}
        />
        <Plot
          title="bytes a second"
          history={history}
          version={version}
          series={['readBytes', 'writeBytes', 'jobBytes']}
          format={humanBytes}
        />
        <Plot
          title="mean latency, ms"
          history={history}
          version={version}
          series={['readMs', 'writeMs']}
          format={(n) => n.toFixed(2)}
        />
        {hasPercentiles && (
          <Plot
            title="latency percentiles of buckets, ms: the slowest disk's"
            history={history}
            version={version}
            series={PERCENTILES}
            format={(n) => (n < 1 ? n.toFixed(2) : String(Math.round(n)))}
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

const PERCENTILES = ['readHalf', 'writeHalf', 'read99', 'write99'];

const LABELS: Readonly<Record<string, string>> = {
  ...{
    reads: 'read',
    writes: 'write',
    readBytes: 'read',
    writeBytes: 'write',
    jobBytes: 'jobs',
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

function Plot({
  title,
  history,
  series,
  format,
  version,
}: {
  title: string;
  history: History;
  series: readonly string[];
  format: (value: number) => string;
  version: number;
}) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  useEffect(() => {
    if (!holder.current) return undefined;
    const element = holder.current;
    const made = new uPlot(
      optionsOf(series, format, history, element.clientWidth),
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
  }, [history]);
  useEffect(() => plot.current?.setData(history.data(series)), [version, history]);
  return (
    <figure>
      <figcaption>{title}</figcaption>
      <div ref={holder} />
    </figure>
  );
}

function optionsOf(
  series: readonly string[],
  format: (value: number) => string,
  history: History,
  width: number,
): uPlot.Options {
  const ink = getComputedStyle(document.body).color;
  const axis = { stroke: ink, grid: { stroke: '#8884', width: 1 }, ticks: { stroke: '#8888' } };
  return {
    width,
    height: HEIGHT,
    cursor: { drag: { x: false, y: false } },
    legend: { live: true },
    scales: {
      // A minute at least: one moment alone has no scale.
      x: { range: (_plot, min, max) => [Math.min(min, max - 60), max] },
      y: { range: (_plot, _min, max) => [0, max > 0 ? max * 1.1 : 1] },
    },
    axes: [axis, { ...axis, size: 70, values: (_plot, values) => values.map(format) }],
    series: [
      {},
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

/** Events stand as lines where they happened. */
function drawMarks(plot: uPlot, history: History, ink: string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.strokeStyle = ink;
  ctx.globalAlpha = 0.4;
  for (const { seconds } of history.marks) {
    const x = plot.valToPos(seconds, 'x', true);
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}
