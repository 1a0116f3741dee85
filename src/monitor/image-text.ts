import type { Json } from '../block/driver.js';
import { formatSpecificText } from '../programs/io/inspect.js';
import { fixed } from '../programs/io/numbers.js';

type Info = { [key: string]: Json };

const PREFIXES = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** "10 MiB", "1.5 GiB", "9.62 MiB": three digits, the unit that keeps them below 1000. */
export function approximateSize(bytes: number): string {
  if (bytes === 0) return '0 B';
  let unit = 0;
  while (unit < PREFIXES.length - 1 && bytes / 1024 ** unit >= 1000) unit++;
  const value = bytes / 1024 ** unit;
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : 3;
  return `${Number(fixed(value, digits))} ${PREFIXES[unit]}B`;
}

/** What is told to people of an image. */
export function infoText(info: Info): string {
  const text = (key: string): string => {
    const value = info[key];
    return typeof value === 'string' ? value : String(Number(value));
  };
  const size = Number(info['virtual-size']);
  const lines = [
    `image: ${text('filename')}`,
    `file format: ${text('format')}`,
    `virtual size: ${approximateSize(size)} (${size} bytes)`,
    `disk size: ${info['actual-size'] === undefined ? 'unavailable' : approximateSize(Number(info['actual-size']))}`,
  ];
  if (info['encrypted'] === true) lines.push('encrypted: yes');
  if (info['cluster-size'] !== undefined) lines.push(`cluster_size: ${text('cluster-size')}`);
  if (info['dirty-flag'] === true) lines.push('cleanly shut down: no');
  if (info['backing-filename'] !== undefined) lines.push(`backing file: ${backingText(info)}`);
  if (info['backing-filename-format'] !== undefined)
    lines.push(`backing file format: ${text('backing-filename-format')}`);
  return `${lines.join('\n')}\n${snapshotsText((info['snapshots'] ?? []) as Info[])}${formatSpecificText(info['format-specific'] as Info | undefined)}`;
}

/** Internal snapshots, in columns; empty when there are none. */
export function snapshotsText(snapshots: readonly Info[]): string {
  return snapshots.length === 0 ? '' : `Snapshot list:\n${snapshotRows(snapshots)}`;
}

/** A line for each of QAPI's SnapshotInfo, below what the columns are. */
export function snapshotRows(snapshots: readonly Info[]): string {
  const row = ([id = '', tag = '', ...rest]: string[]): string =>
    padded(id, 9) +
    ' ' +
    padded(tag, 16) +
    rest.map((text, i) => text.padStart([9, 20, 13, 11][i] ?? 0)).join('');
  const head = row(['ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT']);
  const rows = snapshots.map((one) =>
    row([
      one['id'] as string,
      one['name'] as string,
      approximateSize(Number(one['vm-state-size'])),
      localTime(Number(one['date-sec'])),
      clockText(Number(one['vm-clock-sec']), Number(one['vm-clock-nsec'])),
      one['icount'] === undefined ? '' : String(Number(one['icount'])),
    ]),
  );
  return `${[head, ...rows].join('\n')}\n`;
}

/** As printf pads: by bytes. */
function padded(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - Buffer.byteLength(text)));
}

const two = (value: number): string => String(value).padStart(2, '0');

function localTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':')}`;
}

function clockText(seconds: number, nanoseconds: number): string {
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return `${parts.map(two).join(':')}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')}`;
}

function backingText(info: Info): string {
  const name = info['backing-filename'] as string;
  const full = info['full-backing-filename'] as string | undefined;
  if (full === undefined) return `${name} (cannot determine actual path)`;
  return full === name ? name : `${name} (actual path: ${full})`;
}

/** The same of an image and of all below it. */
export function chainText(info: Info): string {
  const below = info['backing-image'] as Info | undefined;
  return infoText(info) + (below ? chainText(below) : '');
}
