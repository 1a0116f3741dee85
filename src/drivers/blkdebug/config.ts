import { BlockError } from '../../base/error.js';
import { BLKDEBUG_RULES, type InjectErrorRule, type SetStateRule } from '../../schema/blockdev-options.js';
import { FlatOptions, parseFlatMembers } from '../../schema/flat.js';
import { fillMembers, type Members } from '../../schema/types.js';

/** What a rules file says. */
export interface ConfiguredRules {
  inject: InjectErrorRule[];
  setState: SetStateRule[];
}

interface Section {
  readonly group: keyof typeof BLKDEBUG_RULES;
  readonly values: { [key: string]: string };
}

const GROUP_WITH_ID = /^\[(\S{1,63}) "([^"]{1,63})"\]/;
const GROUP = /^\[([^\]]{1,63})/;
const ASSIGNMENT = /^\s*(\S{1,63})(?:\s*=\s*"([^"]{1,1023}))?/;

/**
 * A rules file: sections [inject-error] and [set-state] of lines `key = "value"`, and comments that begin with "#". A
 * line that is only a key gives it an empty value, as in QEMU. Errors: invalid, in QEMU's words.
 */
export function parseRules(text: string): ConfiguredRules {
  const rules: ConfiguredRules = { inject: [], setState: [] };
  for (const { group, values } of sectionsOf(text)) {
    const { members } = BLKDEBUG_RULES[group];
    if (group === 'inject-error') rules.inject.push(parseSection(members, values) as InjectErrorRule);
    else rules.setState.push(parseSection(members, { new_state: '0', ...values }) as SetStateRule);
  }
  return rules;
}

function sectionsOf(text: string): Section[] {
  const sections: Section[] = [];
  const ids = new Set<string>();
  for (const line of text.split(/(?<=\n)/)) {
    if (line === '' || line === '\n' || line.startsWith('#')) continue;
    const header = line.startsWith('[') ? headerOf(line) : undefined;
    if (header) {
      const name = `${header.group} ${header.id}`;
      if (header.id !== undefined && ids.has(name))
        throw invalid(`Duplicate ID '${header.id}' for ${header.group}`);
      ids.add(name);
      sections.push({ group: header.group, values: {} });
      continue;
    }
    const [, key, value = ''] = ASSIGNMENT.exec(line) ?? [];
    if (key === undefined) throw invalid('parse error');
    const section = sections.at(-1);
    if (!section) throw invalid('no group defined');
    if (!(key in BLKDEBUG_RULES[section.group].members)) throw invalid(`Invalid parameter '${key}'`);
    section.values[key] = value;
  }
  return sections;
}

function headerOf(line: string): { group: Section['group']; id: string | undefined } {
  const [, group, id] = GROUP_WITH_ID.exec(line) ?? GROUP.exec(line) ?? [];
  if (group === undefined) throw invalid('parse error');
  if (group === 'inject-error' || group === 'set-state') return { group, id };
  throw invalid(`There is no option group '${group}'`);
}

function parseSection(members: Members, values: { [key: string]: string }): unknown {
  return fillMembers(members, parseFlatMembers(members, FlatOptions.of(values)) ?? {});
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}
