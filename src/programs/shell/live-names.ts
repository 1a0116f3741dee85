import type { QmpClient } from '../../wire/qmp/client.js';
import { isStreamEnding } from '../../view/answers.js';
import { QmpError } from '../../wire/qmp/registry.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../../schema/types.js';

/** What exists in a server and has a name that arguments may say. */
type Named = 'node' | 'disk' | 'job' | 'export' | 'bitmap' | 'object' | 'device' | 'chardev';

/** Arguments that name something there is: of which commands, at which key. The first that fits counts. */
const NAMERS: ReadonlyArray<readonly [commands: RegExp, keys: RegExp, what: Named | undefined]> = [
  // Names that are to be.
  [/^blockdev-add$/, /^node-name$/, undefined],
  [/^drive-(mirror|backup)$/, /^(target|node-name)$/, undefined],
  [/./, /^(snapshot-node-name|filter-node-name|job-id)$/, undefined],
  [/^job-|^block-job-(dismiss|finalize|change)$/, /^id$/, 'job'],
  [/^block-job-/, /^device$/, 'job'],
  [/^block-export-del$/, /^id$/, 'export'],
  [/^nbd-server-remove$/, /^name$/, 'export'],
  [/^block-dirty-bitmap-(remove|clear|enable|disable)$/, /^name$/, 'bitmap'],
  [/^block-dirty-bitmap-merge$/, /^(target|bitmaps)$/, 'bitmap'],
  [/^blockdev-backup$/, /^bitmap$/, 'bitmap'],
  [/^object-del$/, /^id$/, 'object'],
  [/^(device_del|eject|blockdev-.*(tray|medium))$/, /^id$/, 'device'],
  [/^chardev-(change|remove|send-break)$/, /^id$/, 'chardev'],
  [/^ringbuf-/, /^device$/, 'chardev'],
  [/./, /^(device|drive)$/, 'disk'],
  [/^(blockdev|block|nbd|change|x-blockdev)[-_]/, /^(base-node|top-node|node|node-name|target)$/, 'node'],
  [/^(blockdev|block|change|x-blockdev)[-_]/, /^(bottom|replaces|overlay|image-node-name|parent)$/, 'node'],
  [/^blockdev-(add|reopen)$/, /^(file|backing|raw|data-file|image|test|top)$/, 'node'],
];

/** Where their names are told. */
const SOURCES: Readonly<Record<Named, (ask: Ask) => Promise<unknown[]>>> = {
  node: listNodes,
  disk: async (ask) => [...(await ask('query-block')).map(({ device }) => device), ...(await listNodes(ask))],
  job: async (ask) => (await ask('query-jobs')).map(({ id }) => id),
  export: async (ask) => (await ask('query-block-exports')).map(({ id }) => id),
  bitmap: async (ask) =>
    (await nodes(ask)).flatMap((node) => objects(node['dirty-bitmaps']).map(({ name }) => name)),
  object: async (ask) =>
    (await ask('qom-list', { path: '/objects' })).filter(isChild).map(({ name }) => name),
  device: async (ask) =>
    (await ask('query-block')).map(({ qdev }) =>
      typeof qdev === 'string' ? /^\/machine\/peripheral\/([^/]+)/.exec(qdev)?.[1] : undefined,
    ),
  chardev: async (ask) => (await ask('query-chardev')).map(({ label }) => label),
};

type Ask = (command: string, args?: JsonObject) => Promise<JsonObject[]>;

async function listNodes(ask: Ask): Promise<unknown[]> {
  return (await nodes(ask)).map((node) => node['node-name']);
}

/** None while QEMU would crash if it were asked for them (view/answers.ts). */
async function nodes(ask: Ask): Promise<JsonObject[]> {
  if (isStreamEnding({ 'query-jobs': await ask('query-jobs') })) return [];
  return ask('query-named-block-nodes', { flat: true });
}

function isChild({ type }: JsonObject): boolean {
  return typeof type === 'string' && type.startsWith('child<');
}

function objects(value: JsonValue | undefined): JsonObject[] {
  return Array.isArray(value) ? value.filter(isJsonObject) : [];
}

/** Names that the server has now for the argument at `path`; none where the argument names nothing. */
export async function liveNames(
  client: QmpClient,
  command: string,
  path: readonly string[],
): Promise<string[]> {
  const key = path.at(-1) ?? '';
  const what = NAMERS.find(([commands, keys]) => commands.test(command) && keys.test(key))?.[2];
  if (what === undefined) return [];
  const ask: Ask = async (query, args) => {
    try {
      return objects(await client.execute(query, args));
    } catch (error) {
      // A server that does not have the query tells no names.
      if (error instanceof QmpError) return [];
      throw error;
    }
  };
  const names = await SOURCES[what](ask);
  return [...new Set(names.filter((name): name is string => typeof name === 'string' && /^[^#]/.test(name)))];
}
