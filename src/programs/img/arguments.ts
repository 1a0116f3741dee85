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

/** The options and operands of one subcommand. */
export class Arguments {
  readonly operands: readonly string[];
  readonly #options: ReadonlyArray<{ name: string; value: string }>;

  /**
   * `refused`: options that are known, and not supported. Errors: ToolFailure in qemu-img's words, or naming the
   * option that livedisk does not have.
   */
  constructor(
    command: string,
    words: readonly string[],
    taken: readonly OptionSpec[],
    refused: readonly OptionSpec[],
  ) {
    const { options: given, operands, problem } = getopt(words, [...taken, ...refused, OBJECT]);
    if (problem?.kind === 'unknown') throw new UsageError(`unrecognized option '${problem.text}'`);
    if (problem) throw new UsageError(`missing argument for option '${problem.text}'`);
    for (const { name } of given) {
      if (!refused.some((spec) => (spec.long ?? spec.short) === name)) continue;
      const option = name.length === 1 ? `-${name}` : `--${name}`;
      throw new ToolFailure(`${command}: ${option} is not supported by livedisk`);
    }
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
    const output = this.value('output') ?? 'human';
    if (output === 'json' || output === 'human') return output === 'json';
    throw new ToolFailure('--output must be used with human or json as argument.');
  }

  /** A size in bytes; `what` names it in the error. */
  size(name: string, what: string): number | undefined {
    const text = this.value(name);
    return text === undefined ? undefined : sizeOf(text, what);
  }
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
  if (text === undefined) return undefined;
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
