import { writeFileSync } from 'node:fs';
import { BlockError, toBlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import type { Execute } from '../../view/answers.js';
import { type ClusterMap, mapText } from '../../view/cluster-map.js';
import { connectMonitor, lookAt } from '../../view/connect.js';
import { withFiles } from '../../view/files.js';
import { readLiveMap, withMapOf } from '../../view/live-map.js';
import { type FileFacts, fileNameOf, imageOf, type View } from '../../view/model.js';
import { copyText, withMap } from '../../view/plan/expected.js';
import { planAction } from '../../view/plan/plan.js';
import { drawSvg } from '../../view/svg.js';
import { drawChains, drawText } from '../../view/text.js';
import { bracketed, printable, printableJson } from '../../view/words.js';
import { parseAction } from '../../web/action-input.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import {
  parseWords,
  SCREEN_OPTIONS,
  type ScreenIo,
  standardIo,
  wantsColour,
  wholeNumber,
} from './arguments.js';
import { lookAtFiles } from './file-facts.js';
import { readMapOf, withImage } from './offline.js';

export const SHOW_USAGE = `usage: livedisk show [OPTION]... SOCKET|IMAGE

Draws the chains of disks and who uses them: of a running livedisk, qemu-storage-daemon or QEMU by its QMP socket
(PATH, unix:PATH or HOST:PORT), or of an image and its backing files.

  --svg FILE       write the picture to a file
  --json           print what the picture is made of
  --map            which layer each part of the disk comes from: of an image, or of each disk of a livedisk; of another
                   server, as the images' files tell
  --plan ACTION    of a server: what an action would do, in words, as a picture of then, and as commands of QMP. Nothing
                   is done. ACTION is a kind and its arguments: 'stream image=D base=A', 'commit image=C base=A',
                   'delete image=B', 'snapshot image=D node=E file=e.qcow2', 'mirror' and 'backup' likewise,
                   'resize image=D bytes=1073741824', 'export image=D name=e isWritable=false', 'job job=j verb=pause'
  -f, --format F   of an image: its format (default: what it looks like)
  --columns N      default: the terminal's width, else 80
  --color=WHEN     always, never or auto
`;

const OPTIONS = {
  svg: { type: 'string' },
  json: { type: 'boolean' },
  map: { type: 'boolean' },
  plan: { type: 'string' },
  format: { type: 'string', short: 'f' },
  columns: { type: 'string' },
  ...SCREEN_OPTIONS,
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
  if (values.format !== undefined)
    throw new BlockError('invalid', `show: --format is for images, and ${name} is a socket`);
  const client = await connectMonitor(io.host, parseMonitorAddress(name), name);
  try {
    const execute = (command: string, args?: JsonObject): Promise<JsonValue> => client.execute(command, args);
    const seen = await lookAt(client);
    const view = withFiles(seen, await filesOf(name, seen));
    if (values.plan !== undefined) await showPlan(io, view, values.plan, values, execute);
    else if (values.map === true) await showMaps(io, view, values, execute);
    else show(view, values, io);
  } finally {
    client.close();
  }
}

/** Of a server on this machine; relative names are those of the folder that `show` is in. */
async function filesOf(name: string, view: View): Promise<ReadonlyMap<string, FileFacts>> {
  return parseMonitorAddress(name).type === 'unix' ? lookAtFiles(view, process.cwd()) : new Map();
}

async function mapOf(io: ScreenIo, view: View, id: string, execute: Execute): Promise<ClusterMap> {
  const live = await readLiveMap(execute, view, id);
  if (live) return live;
  return readMapOf(io.host, view, id, fileNameOf);
}

async function showMaps(io: ScreenIo, view: View, values: Values, execute: Execute): Promise<void> {
  const maps = new Map<string, ClusterMap>();
  for (const { images } of view.chains) {
    const top = images.findLast((id) => imageOf(view, id)?.kind === 'image');
    if (top !== undefined) maps.set(top, await mapOf(io, view, top, execute));
  }
  let shown = view;
  for (const [id, map] of maps) shown = withMapOf(shown, id, map);
  show(shown, values, io);
  if (values.json === true) return;
  for (const [id, map] of maps) {
    const image = imageOf(view, id);
    io.output.write(`\n${image ? bracketed(image) : printable(id)}\n${mapText(map)}\n`);
  }
}

/** In words, as the picture of then, and as commands. Errors: invalid, saying why it cannot be. */
async function showPlan(
  io: ScreenIo,
  view: View,
  text: string,
  { json, svg, columns, color }: Values,
  execute: Execute,
): Promise<void> {
  const bare = planAction(view, parseAction(actionOf(text)));
  const map = bare.copies && (await mapOf(io, view, bare.copies.image, execute).catch(() => undefined));
  const plan = map ? withMap(bare, map) : bare;
  if (svg !== undefined) writeFile(svg, drawSvg(plan.after));
  if (json === true) io.output.write(`${printableJson(plan, 2)}\n`);
  if (json === true || svg !== undefined) return;
  const facts = [copyText(plan) ?? []].flat();
  const invalid = plan.invalid.map(
    ({ id, why }) => `Not valid afterwards: [${printable(id)}] ${printable(why)}`,
  );
  const undo = plan.undo === undefined ? [] : [`To undo it: ${printable(plan.undo)}`];
  const commands = plan.commands.map(
    ({ execute: command, arguments: args, afterReady }) =>
      `    ${printableJson({ execute: command, arguments: args })}${afterReady === true ? '   (when the job is ready)' : ''}`,
  );
  const options = { columns: widthOf(columns, io), isColoured: wantsColour(color, io.output) };
  const parts = [
    [...plan.words.map(printable), ...facts, ...invalid, ...undo].join('\n'),
    `Now:\n\n${drawChains(view, options)}`,
    `Then:\n\n${drawChains(plan.after, options)}`,
    `QMP:\n\n${commands.join('\n')}`,
  ];
  io.output.write(`${parts.join('\n\n')}\n`);
}

/** `stream image=D base=A`. Errors: invalid. */
function actionOf(text: string): JsonObject {
  const [kind = '', ...words] = text.trim().split(/\s+/);
  const pairs = words.map((word): [string, JsonValue] => {
    const [, name, value = ''] = /^([a-zA-Z]+)=(.*)$/s.exec(word) ?? [];
    if (name === undefined) throw new BlockError('invalid', `--plan: '${printable(word)}' is no NAME=VALUE`);
    if (['bytes', 'speed'].includes(name)) return [name, wholeNumber(`--plan ${name}`, value, 0)];
    return [name, name.startsWith('is') ? value === 'true' : value];
  });
  return { kind, ...Object.fromEntries(pairs) };
}

function showImage(io: ScreenIo, filename: string, values: Values): Promise<void> {
  if (values.plan !== undefined)
    throw new BlockError('invalid', `show: --plan is for servers, and ${filename} is no socket`);
  return withImage(io.host, filename, values.format, async (image) => {
    // The program that looks is no server that anybody asked for.
    const view = withFiles(image.view, await lookAtFiles(image.view, process.cwd()));
    const map = values.map === true ? await image.readMap() : undefined;
    const [top] = map ? view.chains.map(({ images }) => images.at(-1)) : [];
    const shown = map && top !== undefined ? withMapOf(view, top, map) : view;
    show({ ...shown, server: { name: filename } }, values, io);
    if (map && values.json !== true) io.output.write(`\n${mapText(map)}\n`);
  });
}

function show(view: View, { json, svg, columns, color }: Values, { output }: ScreenIo): void {
  if (svg !== undefined) writeFile(svg, drawSvg(view));
  if (json === true) output.write(`${printableJson(view, 2)}\n`);
  else if (svg === undefined) {
    const options = { columns: widthOf(columns, { output }), isColoured: wantsColour(color, output) };
    output.write(`${drawText(view, options)}\n`);
  }
}

function widthOf(columns: string | undefined, { output }: Pick<ScreenIo, 'output'>): number {
  const width =
    columns === undefined ? (output.columns ?? 80) : wholeNumber('--columns', columns, LEAST_COLUMNS);
  return Math.max(LEAST_COLUMNS, width);
}

function writeFile(path: string, text: string): void {
  try {
    writeFileSync(path, text);
  } catch (error) {
    throw toBlockError(error, `Could not write '${path}'`);
  }
}
