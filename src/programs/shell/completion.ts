import type { ServerSchema } from './server-schema.js';

/** Names that the server has now for an argument: see liveNames. */
export type NamesOf = (command: string, path: readonly string[]) => Promise<string[]>;

/**
 * What readline wants: the words that may stand at the end of `line`, and the part of it that they replace.
 * `firstWords`: what a line may begin with.
 */
export async function complete(
  schema: ServerSchema,
  line: string,
  { firstWords, namesOf }: { firstWords: readonly string[]; namesOf: NamesOf },
): Promise<[string[], string]> {
  const last = /\S*$/.exec(line)?.[0] ?? '';
  const before = line.slice(0, line.length - last.length).trim();
  if (before === '') return [startingWith(firstWords, last), last];
  const [command = '', ...words] = before.split(/\s+/);
  if (command === 'help') return [words.length === 0 ? startingWith(schema.commandNames, last) : [], last];
  if (command === 'wait')
    return [words.length === 0 ? startingWith(await namesOf('job-cancel', ['id']), last) : [], last];
  const equals = last.indexOf('=');
  if (equals < 0) return [completeKey(schema, command, words, last), last];
  const path = last.slice(0, equals).split('.');
  const typed = last.slice(equals + 1);
  const values = [...schema.valuesOf(command, path), ...(await namesOf(command, path))];
  return [startingWith(values, typed), typed];
}

function completeKey(
  schema: ServerSchema,
  command: string,
  words: readonly string[],
  last: string,
): string[] {
  const path = last.split('.').slice(0, -1);
  const prefix = path.map((part) => `${part}.`).join('');
  const given = new Map(
    words.map((word) => [word.slice(0, word.indexOf('=')), word.slice(word.indexOf('=') + 1)]),
  );
  const keys = schema
    .arguments(command, path)
    .filter(({ name }) => !given.has(prefix + name))
    // Members of a union's cases, once the case has been chosen.
    .filter(
      ({ cases }) =>
        cases.length === 0 || !hasTag(given, prefix) || cases.some((name) => isTag(given, prefix, name)),
    )
    .map(({ name, type }) => `${prefix}${name}${type === '{...}' ? '.' : '='}`);
  return startingWith([...new Set(keys)], last);
}

const TAGS = ['driver', 'type', 'qom-type', 'action'];

function hasTag(given: ReadonlyMap<string, string>, prefix: string): boolean {
  return TAGS.some((tag) => given.has(prefix + tag));
}

function isTag(given: ReadonlyMap<string, string>, prefix: string, value: string): boolean {
  return TAGS.some((tag) => given.get(prefix + tag) === value);
}

function startingWith(words: readonly string[], start: string): string[] {
  return words.filter((word) => word.startsWith(start));
}
