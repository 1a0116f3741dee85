import { type LoadSnapshot, parseLoadSnapshot } from '../arguments/load-snapshot.js';
import { type CacheMode, cacheOptions } from '../io/cache.js';
import { getopt, type OptionSpec } from '../io/getopt.js';
import { parseSize } from '../../schema/size.js';
import { explain, ToolFailure, UsageError } from './tool.js';

/** Every subcommand takes it; what is left of it here has no value (arguments/objects.ts). */
const OBJECT: OptionSpec = { short: '', long: 'object', takesValue: true };

/** "f:format" takes a value, "p" and "U|force-share" do not: LETTER[|LONG][:], LETTER may be missing. */
export function options(...texts: string[]): OptionSpec[] {
  return texts.map((text) => {
    const takesValue = text.endsWith(':');
    const [short = '', long] = (takesValue ? text.slice(0, -1) : text).split('|');
    return { short, takesValue, ...(long !== undefined && { long }) };
  });
}

/** Each throws what is wrong with a value. */
export type OptionChecks = Readonly<Record<string, (text: string) => unknown>>;

/** The options and operands of one subcommand. */
export class Arguments {
  readonly operands: readonly string[];
  readonly #options: ReadonlyArray<{ name: string; value: string }>;

  /**
   * `checks`, by names: what each of an option's values has to be, seen in the order of the words, as QEMU reads them.
   * Errors: ToolFailure in qemu-img's words; those of the checks.
   */
  constructor(words: readonly string[], taken: readonly OptionSpec[], checks: OptionChecks = {}) {
    const { options: given, operands, problem } = getopt(words, [...taken, OBJECT]);
    for (const { name, value } of given.slice(0, problem?.before)) checks[name]?.(value);
    if (problem?.kind === 'unknown') throw new UsageError(`unrecognized option '${problem.text}'`);
    if (problem) throw new UsageError(`missing argument for option '${problem.text}'`);
    this.operands = operands;
    this.#options = given;
  }

  /** All of them, in order. */
  get given(): ReadonlyArray<{ name: string; value: string }> {
    return this.#options;
  }

  has(name: string): boolean {
    return this.#options.some((option) => option.name === name);
  }

  /** The last one given. */
  value(name: string): string | undefined {
    return this.values(name).at(-1);
  }

  values(name: string): string[] {
    return this.#options.filter((option) => option.name === name).map((option) => option.value);
  }

  /** The only operand. */
  image(): string {
    const [name] = this.operands;
    if (name === undefined || this.operands.length !== 1)
      throw new UsageError('Expecting one image file name');
    return name;
  }

  /** --output=json rather than human. */
  wantsJson(): boolean {
    return outputIsJson(this.value('output') ?? 'human');
  }

  /** A size in bytes; `what` names it in the error. */
  size(name: string, what: string): number | undefined {
    const text = this.value(name);
    return text === undefined ? undefined : sizeOf(text, what);
  }
}

/** Errors: ToolFailure. */
export function outputIsJson(text: string): boolean {
  if (text === 'json' || text === 'human') return text === 'json';
  throw new ToolFailure('--output must be used with human or json as argument.');
}

/** Errors: ToolFailure of two lines, as qemu-img has them. */
export function sizeOf(text: string, what: string): number {
  const bytes = parseSize(text);
  if (bytes !== undefined) return bytes;
  if (/^\d+[kmgtpe]?$/i.test(text))
    throw new ToolFailure(`Invalid ${what} specified. Must be between 0 and ${Number.MAX_SAFE_INTEGER}.`);
  throw new ToolFailure(`Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`, {
    hint: 'qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.',
  });
}

/** A cache mode among the options; `what` names it in the error. Errors: ToolFailure. */
export function cacheMode(args: Arguments, name: string, usual: string, what: string): CacheMode {
  const text = args.value(name) ?? usual;
  const mode = cacheOptions(text);
  if (!mode) throw new ToolFailure(`Invalid ${what} option: ${text}`);
  return mode;
}

/** Which internal snapshot -l asks for. Errors: ToolFailure. */
export function snapshotOf(args: Arguments): LoadSnapshot | undefined {
  const text = args.value('l');
  return text === undefined ? undefined : parseSnapshot(text);
}

/** The same, of its text. */
export function parseSnapshot(text: string): LoadSnapshot {
  try {
    return parseLoadSnapshot(text);
  } catch (error) {
    const { message, hint } = explain(error, '');
    const told = [
      `qemu-img: Failed in parsing snapshot param '${text}'`,
      ...(hint === undefined ? [] : [hint]),
    ];
    throw new ToolFailure(message, { hint: told.join('\n') });
  }
}
