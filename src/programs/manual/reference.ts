import { COMMAND_FEATURES, COMMANDS } from '../../schema/commands.js';
import { EVENTS } from '../../schema/events.js';
import { EXTENSION_COMMANDS, EXTENSION_EVENTS, EXTENSIONS } from '../../schema/extensions.js';
import { RETURNS } from '../../schema/returns.js';
import type { Members, Type } from '../../schema/types.js';
import { meaningOfArgument, meaningOfCommand } from '../shell/meanings.js';
import { EVENT_MEANINGS, KIND_MEANINGS } from './meanings.js';

/** How many values of an enumeration are listed. */
const MOST_VALUES = 12;

const INTRODUCTION = `# Reference

Every command, argument and event of this version. Made from the schema by \`npm run docs\`: do not edit.

An argument in **bold** must be given, and a member in bold is always there. Commands, arguments and events marked *${EXTENSIONS}* are there for clients that enable
it in \`qmp_capabilities\`; *deprecated* and *unstable* are QEMU's words for what may go. Arguments that are known and refused are left out. What differs from QEMU: [QMP-DIFFERENCES.md](QMP-DIFFERENCES.md).
`;

/** docs/REFERENCE.md. */
export function referenceText(): string {
  const names = Object.keys(COMMANDS).sort(byName);
  const commands = names.map((name) => commandText(name, (COMMANDS as Commands)[name] as Type<unknown>));
  const events = Object.entries(EVENTS)
    .sort(([a], [b]) => byName(a, b))
    .map(([name, type]) => eventText(name, type));
  return [
    INTRODUCTION,
    '## Commands\n',
    ...commands,
    '## Events\n',
    ...events,
    '## Types\n',
    ...typesOf(),
  ].join('\n');
}

/** What arguments, answers and events are made of, by name. */
function typesOf(): string[] {
  const found = new Map<string, Type<unknown>>();
  const look = (type: Type<unknown>, isTop: boolean): void => {
    const { name, description } = type;
    if (description.kind === 'array') return look(description.element, false);
    if (description.kind === 'alternate') return description.cases.forEach((one) => look(one, false));
    if (description.kind !== 'object' || found.has(name)) return;
    if (!isTop) found.set(name, type);
    const cases = [...(description.variants?.cases.values() ?? [])];
    for (const { type: of } of Object.values(description.members)) look(of, false);
    for (const one of cases) look(one, true);
  };
  for (const type of [...Object.values(COMMANDS), ...Object.values(EVENTS)]) look(type, true);
  for (const type of Object.values(RETURNS)) look(type, false);
  return [...found]
    .filter(([name]) => name !== '' && name !== ALREADY_TOLD)
    .sort(([a], [b]) => byName(a, b))
    .map(
      ([name, type]) => `### ${name}

${compositionText(type)}`,
    );
}

/** Members, and where there are several kinds, those of each. */
function compositionText({ description }: Type<unknown>): string {
  if (description.kind !== 'object') return '';
  const { members, variants } = description;
  const kinds = [...(variants?.cases ?? [])].flatMap(([name, { description: of }]) => {
    const own = of.kind === 'object' ? memberList(of.members) : '';
    return own === '' ? [] : [`- \`${variants?.tag}=${name}\`: ${own}`];
  });
  const own = memberList(members);
  return `${own === '' ? 'Nothing' : own}.\n${kinds.length > 0 ? `\n${kinds.join('\n')}\n` : ''}`;
}

function memberList(members: Members): string {
  const shown = Object.entries(members).filter(([, member]) => member.later !== true);
  return shown
    .map(([name, { type, required, isExtension }]) => {
      const key = required ? `**\`${name}\`**` : `\`${name}\``;
      return `${key}${isExtension === true ? ` *${EXTENSIONS}*` : ''} (${typeText(type)})`;
    })
    .join(', ');
}

/** With `blockdev-add`. */
const ALREADY_TOLD = 'BlockdevOptions';

type Commands = { readonly [name: string]: Type<unknown> };

/** As a reader looks for it: by letters, whatever they are written with. */
function byName(a: string, b: string): number {
  const [x, y] = [a, b].map((name) => name.toLowerCase().replaceAll('_', '-'));
  return (x ?? '') < (y ?? '') ? -1 : 1;
}

function commandText(name: string, type: Type<unknown>): string {
  const marks = [
    ...(Object.hasOwn(EXTENSION_COMMANDS, name) ? [EXTENSIONS] : []),
    ...(COMMAND_FEATURES[name] ?? []).filter((feature) => ['deprecated', 'unstable'].includes(feature)),
  ];
  const meaning = meaningOfCommand(name);
  const result = RETURNS[name];
  return [
    `### ${name}${marksText(marks)}\n`,
    ...(meaning === undefined ? [] : [`${sentence(meaning)}\n`]),
    ...argumentTables(name, type),
    ...(result ? [`Answers ${typeText(result)}${membersText(result)}.\n`] : []),
  ].join('\n');
}

function eventText(name: string, type: Type<unknown>): string {
  const marks = EXTENSION_EVENTS.has(name) ? [EXTENSIONS] : [];
  const meaning = EVENT_MEANINGS[name];
  const { description } = type;
  const list = description.kind === 'object' ? memberList(description.members) : '';
  return [
    `### ${name}${marksText(marks)}\n`,
    ...(meaning === undefined ? [] : [`${sentence(meaning)}\n`]),
    ...(list === '' ? [] : [`Data: ${list}.\n`]),
  ].join('\n');
}

/** What all kinds take, and then what each kind takes. */
function argumentTables(command: string, { description }: Type<unknown>): string[] {
  if (description.kind !== 'object') return [];
  const { members, variants } = description;
  const own = table(command, members);
  const kinds = [...(variants?.cases ?? [])].sort(([a], [b]) => byName(a, b));
  return [
    ...(own === undefined ? [] : [own]),
    ...kinds.flatMap(([name, type]) => kindText(command, variants?.tag ?? '', name, type)),
  ];
}

function kindText(command: string, tag: string, name: string, { description }: Type<unknown>): string[] {
  const meaning = KIND_MEANINGS[`${command} ${name}`];
  const rows = description.kind === 'object' ? table(command, description.members, name) : undefined;
  if (rows === undefined && meaning === undefined) return [];
  const head = `\`${tag}=${name}\`${meaning === undefined ? '' : `: ${meaning}`}\n`;
  return [head, ...(rows === undefined ? [] : [rows])];
}

function table(command: string, members: Members, kind?: string): string | undefined {
  const rows = Object.entries(members)
    .filter(([, member]) => member.later !== true)
    .map(([name, member]) => {
      const shown = member.required ? `**\`${name}\`**` : `\`${name}\``;
      const marks = [...(member.isExtension === true ? [EXTENSIONS] : []), ...(member.features ?? [])];
      const meaning =
        (kind === undefined ? undefined : meaningOfArgument(`${command}/${kind}`, name)) ??
        meaningOfArgument(command, name) ??
        '';
      return `| ${shown}${marksText(marks)} | ${cell(typeText(member.type))} | ${cell(meaning)}${cell(defaultText(member))} |`;
    });
  if (rows.length === 0) return undefined;
  return `| argument | type | |\n| --- | --- | --- |\n${rows.join('\n')}\n`;
}

function defaultText(member: Members[string]): string {
  const value: unknown = 'default' in member ? member.default : undefined;
  if (value === undefined || value === '' || (typeof value === 'object' && value !== null)) return '';
  return ` (default ${typeof value === 'bigint' ? value.toString() : JSON.stringify(value)})`;
}

function typeText({ name, description }: Type<unknown>): string {
  switch (description.kind) {
    case 'builtin':
      return name;
    case 'enum':
      return valuesText(description.values);
    case 'array':
      return `list of ${typeText(description.element)}`;
    case 'object':
      return linked(name);
    case 'alternate':
      return [...new Set(description.cases.map(typeText))].join(' or ');
  }
}

function linked(name: string): string {
  return name === ALREADY_TOLD ? `[${name}](#blockdev-add)` : `[${name}](#${name.toLowerCase()})`;
}

function valuesText(values: readonly string[]): string {
  const shown = values.slice(0, MOST_VALUES).map((value) => `\`${value}\``);
  return `${shown.join(' ')}${values.length > MOST_VALUES ? ' ...' : ''}`;
}

/** What an answer is made of. */
function membersText({ description }: Type<unknown>): string {
  if (description.kind === 'array') return membersText(description.element);
  if (description.kind !== 'object') return '';
  const names = Object.keys(description.members).map((name) => `\`${name}\``);
  return names.length === 0 ? '' : `: ${names.join(', ')}`;
}

function marksText(marks: readonly string[]): string {
  return marks.map((mark) => ` *${mark}*`).join('');
}

/** The words of a table end at a bar. */
function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}

function sentence(meaning: string): string {
  return `${meaning.charAt(0).toUpperCase()}${meaning.slice(1)}.`;
}
