import { BlockError } from '../base/error.js';
import { MigrateSetParameters, type MigrationInfo, type MigrationParameters } from '../schema/migration.js';
import { hugeSize, parseSize } from '../schema/size.js';
import type { JsonValue } from '../schema/types.js';
import { HmpSyntaxError } from './hmp-arguments.js';
import { type HmpCommand, runQmp } from './hmp-command.js';
import type { Parts } from './parts.js';

export type HmpMigration = Parts<'registry' | 'moves'>;

const TEXT = { missing: 'string expected' } as const;

/** One that is a QMP command with its one operand, or none. */
function plain(name: string, command: string, help: string, operand?: string): HmpCommand<HmpMigration> {
  return {
    name,
    parameters: operand ?? '',
    help,
    syntax: operand === undefined ? {} : { operands: [TEXT] },
    run: (engine, { operands: [value] }) =>
      runQmp(engine, command, operand === undefined ? {} : { [operand]: value }),
  };
}

export const MIGRATION_COMMANDS: ReadonlyArray<HmpCommand<HmpMigration>> = [
  {
    name: 'migrate',
    parameters: '[-d] [-b] [-i] [-r] uri',
    help:
      'migrate to URI (using -d to not wait for completion)\n' +
      '\t\t\t -b for migration without shared storage with full copy of disk\n' +
      '\t\t\t -i for migration without shared storage with incremental copy of disk (base image shared between src and destination)\n' +
      '\t\t\t -r to resume a paused migration',
    syntax: { flags: 'dbir', operands: [TEXT] },
    run: migrate,
  },
  {
    name: 'announce_self',
    parameters: '[interfaces] [id]',
    help: 'Trigger GARP/RARP announcements',
    syntax: { operands: ['optional', 'optional'] },
    run: announceSelf,
  },
  plain('migrate_cancel', 'migrate_cancel', 'cancel the current VM migration'),
  plain('migrate_continue', 'migrate-continue', 'Continue migration from the given paused state', 'state'),
  plain(
    'migrate_incoming',
    'migrate-incoming',
    'Continue an incoming migration from an -incoming defer',
    'uri',
  ),
  plain('migrate_pause', 'migrate-pause', 'Pause an ongoing migration (postcopy-only)'),
  plain('migrate_recover', 'migrate-recover', 'Continue a paused incoming postcopy migration', 'uri'),
  {
    name: 'migrate_set_capability',
    parameters: 'capability state',
    help: 'Enable/Disable the usage of a capability for migration',
    syntax: { operands: [TEXT, { missing: "Expected 'on' or 'off'" }] },
    run: setCapability,
  },
  {
    name: 'migrate_set_parameter',
    parameters: 'parameter value',
    help: 'Set the parameter for migration',
    syntax: { operands: [TEXT, TEXT] },
    run: setParameter,
  },
  plain(
    'migrate_start_postcopy',
    'migrate-start-postcopy',
    'Followup to a migration command to switch the migration to postcopy mode. The postcopy-ram capability must be set ' +
      'on both source and destination before the original migration command .',
  ),
];

export const MIGRATION_INFO: ReadonlyArray<HmpCommand<HmpMigration>> = [
  { name: 'migrate', parameters: '', help: 'show migration status', syntax: {}, run: infoMigrate },
  {
    name: 'migrate_capabilities',
    parameters: '',
    help: 'show current migration capabilities',
    syntax: {},
    run: ({ moves }) =>
      moves.capabilities
        .list()
        .map(({ capability, state }) => `${capability}: ${onOff(state)}\n`)
        .join(''),
  },
  {
    name: 'migrate_parameters',
    parameters: '',
    help: 'show current migration parameters',
    syntax: {},
    run: ({ moves }) => parametersText(moves.parameters.values),
  },
];

/** Other commands go on meanwhile, as where QEMU's monitor cannot be suspended. */
async function migrate(
  engine: HmpMigration,
  { flags, operands: [uri = ''] }: { flags: ReadonlySet<string>; operands: readonly string[] },
): Promise<string> {
  await runQmp(engine, 'migrate', {
    uri,
    blk: flags.has('b') ? true : undefined,
    inc: flags.has('i') ? true : undefined,
    resume: flags.has('r') ? true : undefined,
  });
  return flags.has('d') ? '' : 'terminal does not allow synchronous migration, continuing detached\n';
}

function announceSelf(
  engine: HmpMigration,
  { operands: [interfaces, id] }: { operands: readonly string[] },
): Promise<string> {
  const { values } = engine.moves.parameters;
  return runQmp(engine, 'announce-self', {
    initial: values['announce-initial'],
    max: values['announce-max'],
    rounds: values['announce-rounds'],
    step: values['announce-step'],
    interfaces: interfaces === undefined ? undefined : interfaces.split(','),
    id,
  });
}

async function setCapability(
  engine: HmpMigration,
  { operands: [name = '', state = ''] }: { operands: readonly string[] },
): Promise<string> {
  if (state !== 'on' && state !== 'off')
    throw new HmpSyntaxError(
      `Expected 'on' or 'off'\nTry "help migrate_set_capability" for more information`,
    );
  if (!engine.moves.capabilities.list().some(({ capability }) => capability === name)) throw badValue(name);
  const capabilities = [{ capability: name, state: state === 'on' }];
  return runQmp(engine, 'migrate-set-capabilities', { capabilities });
}

/** Byte counts whose plain numbers are mebibytes. */
const IN_MEBIBYTES: ReadonlySet<string> = new Set(['max-bandwidth']);

async function setParameter(
  engine: HmpMigration,
  { operands: [name = '', text = ''] }: { operands: readonly string[] },
): Promise<string> {
  const { description } = MigrateSetParameters;
  const members = description.kind === 'object' ? description.members : {};
  const member = Object.hasOwn(members, name) ? members[name] : undefined;
  if (!member) throw badValue(name);
  if (name === 'block-bitmap-mapping')
    throw new BlockError('invalid', 'The block-bitmap-mapping parameter can only be set through QMP');
  const given = IN_MEBIBYTES.has(name) && /^\d+$/.test(text) ? `${text}M` : text;
  return runQmp(engine, 'migrate-set-parameters', { [name]: valueOf(given, member.type.name, name) });
}

function valueOf(text: string, type: string, name: string): JsonValue {
  if (type === 'bool') {
    if (text === 'on' || text === 'off') return text === 'on';
    throw new BlockError('invalid', `Parameter '${name}' expects 'on' or 'off'`);
  }
  if (type !== 'size' && type !== 'int') return text;
  const number = parseSize(text) ?? hugeSize(text);
  if (number === undefined || number >= 2n ** 64n)
    throw new BlockError('invalid', `Parameter '${name}' expects a size value`);
  return number;
}

function badValue(name: string): BlockError {
  return new BlockError('invalid', `invalid parameter value: ${name}`);
}

function onOff(isOn: boolean): string {
  return isOn ? 'on' : 'off';
}

/** Settings of QEMU's that nobody can change here either. */
const GLOBALS =
  'globals:\nstore-global-state: on\nonly-migratable: off\nsend-configuration: on\nsend-section-footer: on\n' +
  'decompress-error-check: on\nclear-bitmap-shift: 18\n';

function infoMigrate({ moves }: HmpMigration): string {
  const info = moves.info();
  const lines: string[] = [];
  if (info.status !== undefined) {
    const why = info['error-desc'] === undefined ? '' : ` (${info['error-desc']})`;
    lines.push(`Migration status: ${info.status}${why}`, `total time: ${info['total-time'] ?? 0} ms`);
  }
  const times = {
    'expected-downtime': 'expected downtime',
    downtime: 'downtime',
    'setup-time': 'setup',
  } as const;
  for (const [name, label] of Object.entries(times)) {
    const value = info[name as keyof typeof times];
    if (value !== undefined) lines.push(`${label}: ${value} ms`);
  }
  return `${GLOBALS}${[...lines, ...ramLines(info), ...addressLines(info)].map((line) => `${line}\n`).join('')}`;
}

function ramLines({ ram }: MigrationInfo): string[] {
  if (!ram) return [];
  const kib = (bytes: number): number => Math.floor(bytes / 1024);
  return [
    `transferred ram: ${kib(ram.transferred)} kbytes`,
    `throughput: ${ram.mbps.toFixed(2)} mbps`,
    `remaining ram: ${kib(ram.remaining)} kbytes`,
    `total ram: ${kib(ram.total)} kbytes`,
    `duplicate: ${ram.duplicate} pages`,
    `skipped: ${ram.skipped} pages`,
    `normal: ${ram.normal} pages`,
    `normal bytes: ${kib(ram['normal-bytes'])} kbytes`,
    `dirty sync count: ${ram['dirty-sync-count']}`,
    `page size: ${kib(ram['page-size'])} kbytes`,
    `multifd bytes: ${kib(ram['multifd-bytes'])} kbytes`,
    `pages-per-second: ${ram['pages-per-second']}`,
    `precopy ram: ${kib(ram['precopy-bytes'])} kbytes`,
    ...(ram['downtime-bytes'] > 0 ? [`downtime ram: ${kib(ram['downtime-bytes'])} kbytes`] : []),
  ];
}

function addressLines(info: MigrationInfo): string[] {
  const addresses = info['socket-address'];
  if (!addresses) return [];
  const text = addresses.map((address) => {
    if (address.type === 'unix') return `\tunix:${address.path}`;
    return address.type === 'fd' ? `\tfd:${address.str}` : `\ttcp:${address.host}:${address.port}`;
  });
  return ['socket address: [', ...text, ']'];
}

type Scalar = Exclude<keyof MigrationParameters, 'block-bitmap-mapping'>;

/** In QEMU's order; those of a kind that has a unit, with it. */
function parametersText(values: MigrationParameters): string {
  const unit = (name: Scalar, text: string): string => `${name}: ${values[name]}${text}\n`;
  const quoted = (name: Scalar): string => `${name}: '${values[name]}'\n`;
  const flag = (name: Scalar): string => `${name}: ${onOff(values[name] === true)}\n`;
  return [
    ...(['announce-initial', 'announce-max'] as const).map((name) => unit(name, ' ms')),
    unit('announce-rounds', ''),
    unit('announce-step', ' ms'),
    ...(['compress-level', 'compress-threads'] as const).map((name) => unit(name, '')),
    flag('compress-wait-thread'),
    ...(['decompress-threads', 'throttle-trigger-threshold', 'cpu-throttle-initial'] as const).map((name) =>
      unit(name, ''),
    ),
    unit('cpu-throttle-increment', ''),
    flag('cpu-throttle-tailslow'),
    unit('max-cpu-throttle', ''),
    quoted('tls-creds'),
    quoted('tls-hostname'),
    unit('max-bandwidth', ' bytes/second'),
    unit('downtime-limit', ' ms'),
    unit('x-checkpoint-delay', ' ms'),
    flag('block-incremental'),
    ...(['multifd-channels', 'multifd-compression'] as const).map((name) => unit(name, '')),
    unit('xbzrle-cache-size', ' bytes'),
    unit('max-postcopy-bandwidth', ''),
    quoted('tls-authz'),
    ...mappingText(values),
  ].join('');
}

function mappingText({ 'block-bitmap-mapping': mapping }: MigrationParameters): string[] {
  if (!mapping) return [];
  const nodes = mapping.map(({ 'node-name': node, alias, bitmaps }) => {
    const lines = bitmaps.map((bitmap) => `    '${bitmap.name}' -> '${bitmap.alias}'\n`);
    return `  '${node}' -> '${alias}'\n${lines.join('')}`;
  });
  return ['block-bitmap-mapping:\n', ...nodes];
}
