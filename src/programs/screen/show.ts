import { writeFileSync } from 'node:fs';
import { BlockError, toBlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { mapText } from '../../view/cluster-map.js';
import { connectMonitor, lookAt } from '../../view/connect.js';
import type { View } from '../../view/model.js';
import { drawSvg } from '../../view/svg.js';
import { drawText } from '../../view/text.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import { parseWords, type ScreenIo, standardIo, wantsColour, wholeNumber } from './arguments.js';
import { withImage } from './offline.js';

export const SHOW_USAGE = `usage: livedisk show [OPTION]... SOCKET|IMAGE

Draws the chains of disks and who uses them: of a running livedisk, qemu-storage-daemon or QEMU by its QMP socket
(PATH, unix:PATH or HOST:PORT), or of an image and its backing files.

  --svg FILE       write the picture to a file
  --json           print what the picture is made of
  --map            of an image: which layer each part of the disk comes from
  -f, --format F   of an image: its format (default: what it looks like)
  --columns N      default: the terminal's width, else 80
  --color=WHEN     always, never or auto
`;

const OPTIONS = {
  svg: { type: 'string' },
  json: { type: 'boolean' },
  map: { type: 'boolean' },
  format: { type: 'string', short: 'f' },
  columns: { type: 'string' },
  color: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

type Values = ReturnType<typeof parseWords<typeof OPTIONS>>['values'];

const LEAST_COLUMNS = 40;

/** `livedisk show`. Errors: those of connecting, opening and writing. */
export async function showMain(args: readonly string[], io: ScreenIo = standardIo()): Promise<number> {
  const { values, positionals } = parseWords(args, OPTIONS, SHOW_USAGE);
  if (values.help === true) {
    io.output.write(SHOW_USAGE);
    return 0;
  }
  const [what, ...more] = positionals;
  if (what === undefined || more.length > 0)
    throw new BlockError('invalid', 'show: one SOCKET or IMAGE is needed', { hint: SHOW_USAGE });
  if (await isSocket(io.host, what)) await showServer(io, what, values);
  else await showImage(io, what, values);
  return 0;
}

/** A socket's path, or a name that no image has. */
export async function isSocket(host: Host, what: string): Promise<boolean> {
  const address = parseMonitorAddress(what);
  if (address.type !== 'unix') return (await host.files.stat(what)) === undefined;
  return what.startsWith('unix:') || (await host.files.stat(what))?.isSpecial === 'socket';
}

async function showServer(io: ScreenIo, name: string, values: Values): Promise<void> {
  if (values.map === true || values.format !== undefined)
    throw new BlockError('invalid', `show: --map and --format are for images, and ${name} is a socket`);
  const client = await connectMonitor(io.host, parseMonitorAddress(name), name);
  try {
    show(await lookAt(client), values, io);
  } finally {
    client.close();
  }
}

function showImage(io: ScreenIo, filename: string, values: Values): Promise<void> {
  return withImage(io.host, filename, values.format, async (image) => {
    // The program that looks is no server that anybody asked for.
    show({ ...image.view, server: { name: filename } }, values, io);
    if (values.map === true) io.output.write(`\n${mapText(await image.readMap())}\n`);
  });
}

function show(view: View, { json, svg, columns, color }: Values, { output }: ScreenIo): void {
  if (svg !== undefined) writeFile(svg, drawSvg(view));
  if (json === true) output.write(`${JSON.stringify(view, undefined, 2)}\n`);
  else if (svg === undefined) {
    const width =
      columns === undefined ? (output.columns ?? 80) : wholeNumber('--columns', columns, LEAST_COLUMNS);
    const options = { columns: Math.max(LEAST_COLUMNS, width), isColoured: wantsColour(color, output) };
    output.write(`${drawText(view, options)}\n`);
  }
}

function writeFile(path: string, text: string): void {
  try {
    writeFileSync(path, text);
  } catch (error) {
    throw toBlockError(error, `Could not write '${path}'`);
  }
}
