/** An option as getopt_long(3) knows it. `short` is one letter or '' for none. */
export interface OptionSpec {
  short: string;
  long?: string;
  takesValue: boolean;
}

export interface ParsedArguments {
  /** In the order given; `name` is the long name where there is one, else the letter. */
  options: Array<{ name: string; value: string }>;
  /** What is no option, wherever it stands (GNU permutation); all after "--". */
  operands: string[];
  /** The first thing that is wrong; parsing goes on as if it had not been there. */
  problem?: GetoptProblem;
}

interface GetoptProblem {
  kind: 'unknown' | 'missing-value';
  text: string;
  option: string;
  /** How many options came before it. */
  before: number;
}

/** What is wrong, in getopt's words. */
export function problemText({ kind, text, option }: GetoptProblem): string {
  const isLong = text.startsWith('--');
  if (kind === 'missing-value')
    return isLong
      ? `option '--${option}' requires an argument`
      : `option requires an argument -- '${option}'`;
  return isLong ? `unrecognized option '${text}'` : `invalid option -- '${option}'`;
}

/**
 * Splits words into options and operands as GNU getopt_long does: -abc, -ovalue, -o value, --long=value,
 * --long value, unambiguous beginnings of long names.
 */
export function getopt(words: readonly string[], specs: readonly OptionSpec[]): ParsedArguments {
  const parsed: ParsedArguments = { options: [], operands: [] };
  const queue = [...words];
  for (let word = queue.shift(); word !== undefined; word = queue.shift()) {
    if (word === '--') {
      parsed.operands.push(...queue);
      break;
    }
    if (word.startsWith('--')) takeLong(parsed, word, specs, queue);
    else if (word.startsWith('-') && word.length > 1) takeShort(parsed, word, specs, queue);
    else parsed.operands.push(word);
  }
  return parsed;
}

function takeLong(
  parsed: ParsedArguments,
  word: string,
  specs: readonly OptionSpec[],
  queue: string[],
): void {
  const equals = word.indexOf('=');
  const name = word.slice(2, equals < 0 ? undefined : equals);
  const starting = specs.filter((spec) => spec.long?.startsWith(name));
  const spec =
    starting.find((candidate) => candidate.long === name) ??
    (starting.length === 1 ? starting[0] : undefined);
  if (!spec) return blame(parsed, 'unknown', word, name);
  if (!spec.takesValue) {
    if (equals >= 0) blame(parsed, 'unknown', word, name);
    else parsed.options.push({ name: spec.long ?? '', value: '' });
    return;
  }
  const value = equals >= 0 ? word.slice(equals + 1) : queue.shift();
  if (value === undefined) blame(parsed, 'missing-value', word, name);
  else parsed.options.push({ name: spec.long ?? '', value });
}

function takeShort(
  parsed: ParsedArguments,
  word: string,
  specs: readonly OptionSpec[],
  queue: string[],
): void {
  for (let at = 1; at < word.length; at++) {
    const letter = word.charAt(at);
    const spec = specs.find((candidate) => candidate.short === letter);
    if (!spec) {
      blame(parsed, 'unknown', word, letter);
      continue;
    }
    if (!spec.takesValue) {
      parsed.options.push({ name: spec.long ?? letter, value: '' });
      continue;
    }
    const value = at + 1 < word.length ? word.slice(at + 1) : queue.shift();
    if (value === undefined) blame(parsed, 'missing-value', word, letter);
    else parsed.options.push({ name: spec.long ?? letter, value });
    return;
  }
}

function blame(
  parsed: ParsedArguments,
  kind: 'unknown' | 'missing-value',
  text: string,
  option: string,
): void {
  parsed.problem ??= { kind, text, option, before: parsed.options.length };
}

/** Specs from a getopt(3) string such as "bCl:v". */
export function shortOptions(letters: string): OptionSpec[] {
  return [...letters.matchAll(/([A-Za-z])(:?)/g)].map(([, short, colon]) => ({
    short: short ?? '',
    takesValue: colon === ':',
  }));
}
