import { useEffect, useRef, useState } from 'preact/hooks';
import {
  bytesOfLayers,
  cellsOf,
  type ClusterMap,
  dirtyPartsOf,
  type MapCell,
  ratesOfCells,
} from '../../view/cluster-map.js';
import { below, imageOf, type View } from '../../view/model.js';
import { humanBytes } from '../../view/progress-meter.js';
import { percentText, printable } from '../../view/words.js';
import type { BitmapStretches, Heat } from '../messages.js';
import { useAnswer } from './answers.js';

const COLUMNS = 64;
const ROWS = 16;
const CELL = 10;

/** Okabe and Ito's colours, which who sees few colours tells apart; letters say the same. */
const COLOURS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442', '#7f7f7f'];

interface NamedBitmap {
  readonly node: string;
  readonly name: string;
}

/** Whose clusters a disk shows, and on request what a bitmap has as dirty; looked at anew as jobs run. */
export function MapView({
  server,
  view,
  image,
  onClose,
}: {
  server: string;
  view: View;
  image: string;
  onClose: () => void;
}) {
  const [zoom, setZoom] = useState<{ start: number; lengthBytes: number }>();
  const [bitmap, setBitmap] = useState<NamedBitmap>();
  const [isHeated, setHeated] = useState(false);
  const chain = chainOf(view, image);
  const bitmaps = bitmapsOf(view, image);
  const chosen = bitmaps.find((one) => one.node === bitmap?.node && one.name === bitmap.name);
  const turn = useTurns(view.jobs.length > 0, TURN_MS);
  const { answer: map, ...ofMap } = useAnswer<ClusterMap>('map', { server, image }, `${chain} ${turn}`);
  const { answer: dirty, ...ofBitmap } = useAnswer<BitmapStretches>(
    'bitmap',
    chosen && { server, node: chosen.node, name: chosen.name },
    `${chosen?.dirtyBytes} ${turn}`,
  );
  // A livedisk counts as long as somebody asks.
  const { answer: heat, ...ofHeat } = useAnswer<Heat>(
    'heat',
    isHeated ? { server, node: activeOf(view, image) } : undefined,
    useTurns(isHeated, HEAT_MS),
  );
  const errors = [ofMap.error, ofBitmap.error, ofHeat.error].filter((error) => error !== undefined);
  useEffect(() => setZoom(undefined), [server, image]);
  return (
    <section aria-label="map" class="panel">
      <h2>
        Whose is what{' '}
        <button type="button" class="close" onClick={onClose} aria-label="close the map">
          ✕
        </button>
      </h2>
      {[...new Set(errors)].map((error) => (
        <p key={error} class="error" role="alert">
          {printable(error)}
        </p>
      ))}
      {map && (
        <Cells
          map={zoom ? part(map, zoom.start, zoom.lengthBytes) : map}
          offset={zoom?.start ?? 0}
          dirty={dirty?.stretches}
          heat={heat}
          onZoom={setZoom}
        />
      )}
      <p>
        <label>
          <input type="checkbox" name="heat" onChange={(event) => setHeated(event.currentTarget.checked)} />{' '}
          where it is written to
        </label>
      </p>
      {bitmaps.length > 0 && (
        <p>
          <label>
            bitmap over it{' '}
            <select name="bitmap" onChange={(event) => setBitmap(bitmaps[Number(event.currentTarget.value)])}>
              <option value="">none</option>
              {bitmaps.map((one, i) => (
                <option key={`${one.node} ${one.name}`} value={i} selected={one === chosen}>
                  {printable(`${one.name} of ${one.node}, ${humanBytes(one.dirtyBytes)}`)}
                </option>
              ))}
            </select>
          </label>
        </p>
      )}
      {dirty && (
        <p class="quiet">
          Hatched is what {printable(chosen?.name ?? '')} has as dirty
          {dirty.isCut ? '; it has more than is shown' : ''}.
        </p>
      )}
      {heat && <HeatLegend heat={heat} />}
      {zoom && (
        <button type="button" onClick={() => setZoom(undefined)}>
          the whole disk
        </button>
      )}
      {map && <Legend map={map} />}
    </section>
  );
}

/** The image that is written to, of the disk that shows this one. */
function activeOf(view: View, image: string): string {
  const chain = view.chains.find(({ images }) => images.includes(image));
  return chain?.images.at(-1) ?? image;
}

function HeatLegend({ heat }: { heat: Heat }) {
  const all = heat.regions.reduce((sum, { rate }) => sum + rate, 0);
  const seconds = Math.round(heat.counted / 1000);
  return (
    <p class="quiet">
      The larger a dot, the more is written there: {humanBytes(all)} a second in all, as a mean of the last{' '}
      {seconds} s in which what is {heat['half-life'] / 1000} s old counts half.
    </p>
  );
}

function chainOf(view: View, image: string): string {
  return wayDown(view, image).join(' ');
}

function wayDown(view: View, image: string): string[] {
  const way: string[] = [];
  for (let id: string | undefined = image; id !== undefined && !way.includes(id);) {
    way.push(id);
    const found = imageOf(view, id);
    id = found && below(found);
  }
  return way;
}

/** Of the images of a chain. */
function bitmapsOf(view: View, image: string): Array<NamedBitmap & { readonly dirtyBytes: number }> {
  return wayDown(view, image).flatMap((node) =>
    (imageOf(view, node)?.bitmaps ?? []).map(({ name, dirtyBytes }) => ({ node, name, dirtyBytes })),
  );
}

/** Reading a map anew takes the page's server some time, and the disks' server none. */
const TURN_MS = 5000;
const HEAT_MS = 2000;

/** A number that goes up now and then while something goes on, and once when it has ended. */
function useTurns(isGoingOn: boolean, everyMs: number): number {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (!isGoingOn) return undefined;
    const next = (): void => setTurn((last) => last + 1);
    const timer = setInterval(next, everyMs);
    return () => {
      clearInterval(timer);
      next();
    };
  }, [isGoingOn, everyMs]);
  return turn;
}

function Cells({
  map,
  offset,
  dirty,
  heat,
  onZoom,
}: {
  map: ClusterMap;
  offset: number;
  dirty: BitmapStretches['stretches'] | undefined;
  heat: Heat | undefined;
  onZoom: (zoom: { start: number; lengthBytes: number } | undefined) => void;
}) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [at, setAt] = useState<number>();
  const cells = cellsOf(map, COLUMNS * ROWS);
  const shifted = dirty?.map((one) => ({ ...one, start: one.start - offset })) ?? [];
  const dirtyParts = dirtyPartsOf(cells, shifted);
  const rates = heat
    ? ratesOfCells(
        cells,
        heat.regions.map(({ start, rate }) => ({ start: start - offset, rate })),
        heat.region,
      )
    : [];
  useEffect(() => {
    const context = canvas.current?.getContext('2d');
    if (!context) return;
    context.clearRect(0, 0, COLUMNS * CELL, ROWS * CELL);
    for (const [i, { layer, part: share }] of cells.entries()) {
      context.fillStyle = layer === undefined ? '#8883' : (COLOURS[layer % COLOURS.length] ?? '#888');
      context.globalAlpha = layer === undefined ? 1 : 0.35 + 0.65 * share;
      context.fillRect((i % COLUMNS) * CELL, Math.floor(i / COLUMNS) * CELL, CELL - 1, CELL - 1);
    }
    context.globalAlpha = 1;
    for (const [i, share] of dirtyParts.entries())
      if (share > 0) hatch(context, (i % COLUMNS) * CELL, Math.floor(i / COLUMNS) * CELL, share);
    const most = Math.max(1, ...rates);
    for (const [i, rate] of rates.entries())
      if (rate > 0) dot(context, (i % COLUMNS) * CELL, Math.floor(i / COLUMNS) * CELL, rate / most);
    if (at !== undefined) {
      context.strokeStyle = getComputedStyle(document.body).color;
      context.lineWidth = 2;
      context.strokeRect((at % COLUMNS) * CELL, Math.floor(at / COLUMNS) * CELL, CELL - 1, CELL - 1);
    }
  });
  const zoom = (index: number): void => {
    const row = Math.floor(index / COLUMNS);
    const cell = cells[row * COLUMNS];
    const last = cells[Math.min(row * COLUMNS + COLUMNS, cells.length) - 1];
    if (cell && last && map.diskBytes > COLUMNS * 65536)
      onZoom({ start: offset + cell.start, lengthBytes: last.start + last.lengthBytes - cell.start });
  };
  const indexOf = (event: MouseEvent): number => {
    const box = (event.currentTarget as HTMLCanvasElement).getBoundingClientRect();
    const place = (from: number, size: number, count: number): number =>
      Math.min(count - 1, Math.max(0, Math.floor((from / size) * count)));
    const row = place(event.clientY - box.top, box.height, ROWS);
    return Math.min(cells.length - 1, row * COLUMNS + place(event.clientX - box.left, box.width, COLUMNS));
  };
  const onKeyDown = (event: KeyboardEvent): void => {
    const step = KEY_STEPS[event.key];
    if (step !== undefined) setAt(Math.min(cells.length - 1, Math.max(0, (at ?? 0) + step)));
    else if (event.key === 'Enter' && at !== undefined) zoom(at);
    else if (event.key === 'Escape') onZoom(undefined);
    else return;
    event.preventDefault();
  };
  return (
    <>
      <canvas
        ref={canvas}
        width={COLUMNS * CELL}
        height={ROWS * CELL}
        role="application"
        tabIndex={0}
        aria-label="map of the disk: arrow keys go from cell to cell, Enter shows a row larger, Escape the whole disk"
        onClick={(event) => zoom(indexOf(event))}
        onMouseMove={(event) => setAt(indexOf(event))}
        onKeyDown={onKeyDown}
      />
      <p class="quiet" role="status">
        {cellText(map, at === undefined ? undefined : cells[at], {
          offset,
          dirty: dirty && dirtyParts[at ?? 0],
          rate: heat && rates[at ?? 0],
        }) ??
          `From ${humanBytes(offset)}, each cell ${humanBytes(cells[0]?.lengthBytes ?? 0)}; a click on a row shows it larger.`}
      </p>
    </>
  );
}

const KEY_STEPS: Readonly<Record<string, number>> = {
  ArrowLeft: -1,
  ArrowRight: 1,
  ArrowUp: -COLUMNS,
  ArrowDown: COLUMNS,
};

/** What is known of one cell, in words: whoever sees no colours has it all. */
function cellText(
  map: ClusterMap,
  cell: MapCell | undefined,
  more: { offset: number; dirty: number | undefined; rate: number | undefined },
): string | undefined {
  if (!cell) return undefined;
  const { start, lengthBytes, layer, part: share } = cell;
  const whose = layer === undefined ? 'nothing' : `${percentText(share)} ${map.layers[layer] ?? ''}`;
  const dirty = more.dirty === undefined ? '' : `, ${percentText(more.dirty)} dirty`;
  const rate = more.rate === undefined ? '' : `, written at ${humanBytes(more.rate)} a second`;
  return printable(
    `At ${humanBytes(more.offset + start)}, ${humanBytes(lengthBytes)}: ${whose}${dirty}${rate}`,
  );
}

/** The hotter, the larger: to be seen on every colour. */
function dot(context: CanvasRenderingContext2D, x: number, y: number, part: number): void {
  const radius = 1 + 3 * Math.sqrt(part);
  context.beginPath();
  context.arc(x + (CELL - 1) / 2, y + (CELL - 1) / 2, radius, 0, 2 * Math.PI);
  context.fillStyle = '#fff';
  context.fill();
  context.strokeStyle = '#000';
  context.lineWidth = 1;
  context.stroke();
}

/** Lines across a cell, thicker where more of it is dirty: light and dark, to be seen on every colour. */
function hatch(context: CanvasRenderingContext2D, x: number, y: number, share: number): void {
  for (const [colour, width] of [
    ['#000', 2 + 2 * share],
    ['#fff', 1 + share],
  ] as const) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x + 1, y + CELL - 2);
    context.lineTo(x + CELL - 2, y + 1);
    context.stroke();
  }
}

/** A stretch of the disk as if it were all. */
function part(map: ClusterMap, start: number, lengthBytes: number): ClusterMap {
  const extents = map.extents.flatMap((extent) => {
    const from = Math.max(extent.start, start);
    const end = Math.min(extent.start + extent.lengthBytes, start + lengthBytes);
    return end > from ? [{ ...extent, start: from - start, lengthBytes: end - from }] : [];
  });
  return { ...map, diskBytes: lengthBytes, extents };
}

/** More layers have no lines in a legend: the cell that is looked at says whose it is. */
const SHOWN_LAYERS = 16;

function Legend({ map }: { map: ClusterMap }) {
  const bytes = bytesOfLayers(map);
  const most = map.layers
    .map((label, layer) => ({ label, layer, own: bytes[layer] ?? 0 }))
    .sort((a, b) => b.own - a.own || a.layer - b.layer)
    .slice(0, SHOWN_LAYERS)
    .sort((a, b) => a.layer - b.layer);
  const left = map.layers.length - most.length;
  return (
    <ul class="legend">
      {most.map(({ label, layer, own }) => (
        <li key={layer}>
          <svg width="12" height="12" aria-hidden="true">
            <rect width="12" height="12" fill={COLOURS[layer % COLOURS.length]} />
          </svg>{' '}
          {printable(label)}: {humanBytes(own)}, {Math.round((100 * own) / Math.max(1, map.diskBytes))}%
        </li>
      ))}
      {left > 0 && <li class="quiet">and {left} layers that the disk shows less of</li>}
    </ul>
  );
}
