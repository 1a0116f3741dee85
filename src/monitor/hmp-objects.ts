import { BlockError } from '../base/error.js';
import { MuxDevice } from '../attach/mux-device.js';
import { devicesOf, parseCharacterDevice } from '../programs/arguments/character-devices.js';
import { parseObject } from '../programs/arguments/objects.js';
import { parseJson } from '../wire/qmp/json-parser.js';
import { formatJson } from '../wire/qmp/json-format.js';
import type { JsonObject, JsonValue } from '../schema/types.js';
import { openCharacterDevice } from './chardevs.js';
import { HmpSyntaxError } from './hmp-arguments.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import type { Parts } from './parts.js';

export type HmpObjects = Parts<
  | 'registry'
  | 'graph'
  | 'characterDevices'
  | 'host'
  | 'openStandard'
  | 'hub'
  | 'warn'
  | 'identity'
  | 'quitting'
>;

const TEXT = { missing: 'string expected' } as const;
const NUMBER = { missingWord: 'unexpected end of expression' } as const;

function integer(text: string): number {
  if (/^-?\d+$/.test(text)) return Number(text);
  const what = `invalid char '${text.replace(/^\d+/, '').charAt(0)}' in expression`;
  throw new HmpSyntaxError(`${what}\nTry "help ringbuf_read" for more information`);
}

/** One that is a QMP command with its operands' names. */
function qmp(
  name: string,
  [parameters, help]: readonly [string, string],
  names: readonly string[],
  command = name,
): HmpCommand<HmpObjects> {
  return {
    name,
    parameters,
    help,
    syntax: { operands: names.map(() => TEXT) },
    run: (engine, { operands }) =>
      runQmp(engine, command, Object.fromEntries(names.map((key, i) => [key, operands[i]]))),
  };
}

/** Commands about objects and character devices. */
export const OBJECT_COMMANDS: ReadonlyArray<HmpCommand<HmpObjects>> = [
  {
    name: 'chardev-add',
    parameters: 'args',
    help: 'add chardev',
    syntax: { operands: [TEXT] },
    run: async (engine, { operands: [words = ''] }) => {
      const option = parseCharacterDevice(words);
      const { id } = option;
      if (engine.characterDevices.find(id))
        throw new BlockError(
          'exists',
          `attempt to add duplicate property '${id}' to object (type 'container')`,
        );
      for (const { id: name, backend, maxClients } of devicesOf(option))
        await engine.characterDevices.add(name, () => openCharacterDevice(engine, name, backend, maxClients));
      return '';
    },
  },
  {
    name: 'chardev-change',
    parameters: 'id args',
    help: 'change chardev',
    syntax: { operands: [TEXT, TEXT] },
    run: async (engine, { operands: [id = '', words = ''] }) => {
      const old = engine.characterDevices.find(id);
      if (!old) throw new BlockError('not-found', `Chardev '${id}' does not exist`);
      const { backend, maxClients, isShared = false } = parseCharacterDevice(`${words},id=${id}`);
      if (isShared || old instanceof MuxDevice)
        throw new BlockError('unsupported', 'Mux device hotswap not supported yet');
      await engine.characterDevices.replace(old, () => openCharacterDevice(engine, id, backend, maxClients));
      return '';
    },
  },
  qmp('chardev-remove', ['id', 'remove chardev'], ['id']),
  qmp('chardev-send-break', ['id', 'send a break on chardev'], ['id']),
  qmp('closefd', ['closefd name', 'close a file descriptor previously passed via SCM rights'], ['fdname']),
  qmp('getfd', ['getfd name', 'receive a file descriptor via SCM rights and assign it a name'], ['fdname']),
  {
    name: 'object_add',
    parameters: '[qom-type=]type,id=str[,prop=value][,...]',
    help: 'create QOM object',
    syntax: { operands: [TEXT] },
    run: async (engine, { operands: [words = ''] }) => {
      await engine.graph.objects.add(parseObject(words));
      return '';
    },
  },
  qmp('object_del', ['id', 'destroy QOM object'], ['id'], 'object-del'),
  {
    name: 'qom-get',
    parameters: 'path property',
    help: 'print QOM property',
    syntax: { operands: [TEXT, TEXT] },
    run: async (engine, { operands: [path = '', property = ''] }) =>
      `${formatJson((await ask(engine, 'qom-get', { path, property })) as JsonValue)}\n`,
  },
  {
    name: 'qom-list',
    parameters: 'path',
    help: 'list QOM properties',
    syntax: { operands: ['optional'] },
    run: async (engine, { operands: [path] }) => {
      if (path === undefined) return '/\n';
      const list = (await ask(engine, 'qom-list', { path })) as Array<{ name: string; type: string }>;
      return list.map(({ name, type }) => `${name} (${type})\n`).join('');
    },
  },
  {
    name: 'qom-set',
    parameters: '[-j] path property value',
    help: 'set QOM property.\n\t\t\t-j: the value is specified in json format.',
    syntax: { flags: 'j', operands: [TEXT, TEXT, TEXT] },
    run: (engine, { flags, operands: [path = '', property = '', text = ''] }) =>
      runQmp(engine, 'qom-set', { path, property, value: flags.has('j') ? parseJson(text) : guess(text) }),
  },
  {
    name: 'ringbuf_read',
    parameters: 'device size',
    help: 'Read from a ring buffer character device',
    syntax: { operands: [TEXT, NUMBER] },
    run: async (engine, { operands: [device = '', size = ''] }) =>
      `${String(await ask(engine, 'ringbuf-read', { device, size: integer(size) }))}\n`,
  },
  qmp(
    'ringbuf_write',
    ['device data', 'Write to a ring buffer character device'],
    ['device', 'data'],
    'ringbuf-write',
  ),
];

/** A value without quotes: a number or a boolean where it looks like one. */
function guess(text: string): JsonValue {
  if (/^-?\d+$/.test(text)) return parseJson(text);
  if (/^(on|yes|true|y)$/.test(text)) return true;
  return /^(off|no|false|n)$/.test(text) ? false : text;
}

function ask({ registry }: Parts<'registry'>, command: string, args: JsonObject): Promise<unknown> {
  return registry.execute(command, args);
}

/** What `info` tells beside disks. */
export const OBJECT_INFO: ReadonlyArray<HmpCommand<HmpObjects>> = [
  {
    name: 'chardev',
    parameters: '',
    help: 'show the character devices',
    syntax: {},
    run: ({ characterDevices }) =>
      characterDevices
        .list()
        .map(({ id, filename }) => `${id}: filename=${filename}\n`)
        .join(''),
  },
  {
    name: 'iothreads',
    parameters: '',
    help: 'show iothreads',
    syntax: {},
    run: async (engine) => {
      const list = (await ask(engine, 'query-iothreads', {})) as Array<{ [name: string]: string | number }>;
      return list.map((one) => iothreadText(one)).join('');
    },
  },
  {
    name: 'kvm',
    parameters: '',
    help: 'show KVM information',
    syntax: {},
    run: () => 'kvm support: disabled\n',
  },
  {
    name: 'name',
    parameters: '',
    help: 'show the current VM name',
    syntax: {},
    run: ({ identity: { name } }) => (name === undefined ? '' : `${name}\n`),
  },
  {
    name: 'uuid',
    parameters: '',
    help: 'show the current VM UUID',
    syntax: {},
    run: async (engine) => `${((await ask(engine, 'query-uuid', {})) as { UUID: string }).UUID}\n`,
  },
];

function iothreadText({ id, ...members }: { [name: string]: string | number }): string {
  const names = ['thread-id', 'poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch'];
  const of = (name: string): string => `  ${name.replace('thread-id', 'thread_id')}=${members[name] ?? 0}\n`;
  return `${id}:\n${names.map(of).join('')}`;
}
