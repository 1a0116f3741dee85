import { useEffect, useRef, useState } from 'preact/hooks';
import { bytesOfLayers, cellsOf, type ClusterMap, dirtyPartsOf } from '../../view/cluster-map.js';
import { below, imageOf, type View } from '../../view/model.js';
import { humanBytes } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';
import type { BitmapStretches } from '../messages.js';
import { ask } from './store.js';

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
  const [map, setMap] = useState<ClusterMap>();
  const [error, setError] = useState('');
  const [zoom, setZoom] = useState<{ start: number; lengthBytes: number }>();
  const [bitmap, setBitmap] = useState<NamedBitmap>();
  const [dirty, setDirty] = useState<BitmapStretches>();
  const chain = chainOf(view, image);
  const bitmaps = bitmapsOf(view, image);
  const chosen = bitmaps.find((one) => one.node === bitmap?.node && one.name === bitmap.name);
  const turn = useTurns(view.jobs.length > 0);
  useEffect(() => {
    setMap(undefined);
    setZoom(undefined);
  }, [server, image]);
  useEffect(() => {
    ask<ClusterMap>('map', { server, image }).then(
      (now) => (setMap(now), setError('')),
      (reason: Error) => setError(reason.message),
    );
  }, [server, image, chain, turn]);
  useEffect(() => {
    if (!chosen) return setDirty(undefined);
    ask<BitmapStretches>('bitmap', { server, node: chosen.node, name: chosen.name }).then(
      (now) => (setDirty(now), setError('')),
      (reason: Error) => (setDirty(undefined), setError(reason.message)),
    );
  }, [server, chosen?.node, chosen?.name, chosen?.dirtyBytes, turn]);
  return (
    <section aria-label="map" class="panel">
      <h2>
        Whose is what{' '}
        <button type="button" class="close" onClick={onClose} aria-label="close the map">
          ✕
        </button>
      </h2>
      {error !== '' && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      {map && (
        <Cells
          map={zoom ? part(map, zoom.start, zoom.lengthBytes) : map}
          offset={zoom?.start ?? 0}
          dirty={dirty?.stretches}
          onZoom={setZoom}
        />
      )}
      {bitmaps.length > 0 && (
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
      )}
      {dirty && (
        <p class="quiet">
          Hatched is what {printable(chosen?.name ?? '')} has as dirty
          {dirty.isCut ? '; it has more than is shown' : ''}.
        </p>
      )}
      {zoom && (
        <button type="button" onClick={() => setZoom(undefined)}>
          the whole disk
        </button>
      )}
      {map && <Legend map={map} />}
    </section>
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

/** A number that goes up now and then while something goes on, and once when it has ended. */
function useTurns(isGoingOn: boolean): number {
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    if (!isGoingOn) return undefined;
    const next = (): void => setTurn((last) => last + 1);
    const timer = setInterval(next, TURN_MS);
    return () => {
      clearInterval(timer);
      next();
    };
  }, [isGoingOn]);
  return turn;
}

function Cells({
  map,
  offset,
  dirty,
  onZoom,
}: {
  map: ClusterMap;
  offset: number;
  dirty: BitmapStretches['stretches'] | undefined;
  onZoom: (zoom: { start: number; lengthBytes: number }) => void;
}) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const cells = cellsOf(map, COLUMNS * ROWS);
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
    const shifted = dirty?.map((one) => ({ ...one, start: one.start - offset })) ?? [];
    for (const [i, share] of dirtyPartsOf(cells, shifted).entries())
      if (share > 0) hatch(context, (i % COLUMNS) * CELL, Math.floor(i / COLUMNS) * CELL, share);
  });
  const zoom = (event: MouseEvent): void => {
    const box = (event.currentTarget as HTMLCanvasElement).getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * ROWS);
    const cell = cells[row * COLUMNS];
    const last = cells[Math.min(row * COLUMNS + COLUMNS, cells.length) - 1];
    if (cell && last && map.diskBytes > COLUMNS * 65536)
      onZoom({ start: offset + cell.start, lengthBytes: last.start + last.lengthBytes - cell.start });
  };
  return (
    <>
      <canvas
        ref={canvas}
        width={COLUMNS * CELL}
        height={ROWS * CELL}
        role="img"
        aria-label="each part of the disk, in the colour of its layer"
        onClick={zoom}
      />
      <p class="quiet">
        From {humanBytes(offset)}, each cell {humanBytes(cells[0]?.lengthBytes ?? 0)}; a click on a row shows
        it larger.
      </p>
    </>
  );
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

function Legend({ map }: { map: ClusterMap }) {
  const bytes = bytesOfLayers(map);
  return (
    <ul class="legend">
      {map.layers.map((label, layer) => (
        <li key={label}>
          <svg width="12" height="12" aria-hidden="true">
            <rect width="12" height="12" fill={COLOURS[layer % COLOURS.length]} />
          </svg>{' '}
          {printable(label)}: {humanBytes(bytes[layer] ?? 0)},{' '}
          {Math.round((100 * (bytes[layer] ?? 0)) / Math.max(1, map.diskBytes))}%
        </li>
      ))}
    </ul>
  );
}
