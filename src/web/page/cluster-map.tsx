import { useEffect, useRef, useState } from 'preact/hooks';
import { bytesOfLayers, cellsOf, type ClusterMap } from '../../view/cluster-map.js';
import { humanBytes } from '../../view/progress-meter.js';
import { printable } from '../../view/words.js';
import { ask } from './store.js';

const COLUMNS = 64;
const ROWS = 16;
const CELL = 10;

/** Okabe and Ito's colours, which who sees few colours tells apart; letters say the same. */
const COLOURS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#f0e442', '#7f7f7f'];

export function MapView({ server, image, onClose }: { server: string; image: string; onClose: () => void }) {
  const [map, setMap] = useState<ClusterMap>();
  const [error, setError] = useState('');
  const [zoom, setZoom] = useState<{ start: number; lengthBytes: number }>();
  useEffect(() => {
    setMap(undefined);
    setZoom(undefined);
    ask<ClusterMap>('map', { server, image }).then(setMap, (reason: Error) => setError(reason.message));
  }, [server, image]);
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
          onZoom={setZoom}
        />
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

function Cells({
  map,
  offset,
  onZoom,
}: {
  map: ClusterMap;
  offset: number;
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
