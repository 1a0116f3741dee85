import { BlockError } from '../../base/error.js';

/** Options that may be cut short: QEMU's, so that what scripts have cut stays clear whatever livedisk adds. */
const CUT = 'blockdev chardev daemonize export help monitor nbd-server object pidfile trace version'.split(
  ' ',
);
const SHORT: Readonly<Record<string, string>> = { h: '--help', T: '--trace', V: '--version' };
/** They are answered where they stand, whatever comes behind. */
const ANSWERED = new Set(['--help', '--version']);

/**
 * A storage daemon's command line as it reads it (getopt_long): options by their whole names, each value a word of its own.
 * `isFlag`: whether an option of that name takes none; undefined for names of none. Errors: invalid, in QEMU's words.
 */
export function readLongOptions(
  args: readonly string[],
  isFlag: (name: string) => boolean | undefined,
): string[] {
  const words: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const given = args[i] ?? '';
    if (given === '--') return [...words, ...args.slice(i + 1)];
    const { name, value, written = name } = nameOf(given, isFlag) ?? {};
    if (name === undefined || written === undefined) {
      words.push(given);
      continue;
    }
    const takesNone = isFlag(name);
    if (takesNone === undefined) throw unknown(given);
    words.push(written);
    if (takesNone && value !== undefined) throw invalid(`option '${name}' doesn't allow an argument`);
    if (ANSWERED.has(name)) return words;
    if (takesNone) continue;
    const next = value ?? args[++i];
    if (next === undefined) throw invalid(`option '${name}' requires an argument`);
    words.push(next);
  }
  return words;
}

interface Named {
  name: string;
  value: string | undefined;
  /** Where it is not the name. */
  written?: string;
}

/** Undefined for a word that is no option. */
function nameOf(given: string, isFlag: (name: string) => boolean | undefined): Named | undefined {
  const [, short, attached] = /^-([^-])(.*)$/s.exec(given) ?? [];
  // One dash will do.
  const isWhole = isFlag(`-${given}`) !== undefined;
  if (short !== undefined && !isWhole) {
    const name = Object.hasOwn(SHORT, short) ? SHORT[short] : undefined;
    if (name === undefined) throw invalid(`invalid option -- '${short}'`);
    return { name, value: attached === '' || isFlag(name) === true ? undefined : attached };
  }
  const [, name, value] = /^(--?[a-z][^=]*)(?:=(.*))?$/s.exec(given) ?? [];
  if (name === undefined) return given.startsWith('--') ? { name: given, value: undefined } : undefined;
  const whole = name.replace(/^--?/, '--');
  if (isFlag(whole) !== undefined) return { name: whole, value, written: name };
  const [only, another] = CUT.filter((one) => `--${one}`.startsWith(whole));
  return { name: only !== undefined && another === undefined ? `--${only}` : whole, value };
}

function unknown(given: string): BlockError {
  return invalid(`unrecognized option '${given.replace(/=.*/s, '')}'`);
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}
