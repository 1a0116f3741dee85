import { MAX_IO_BYTES } from './limits.js';
import { getopt, problemText, shortOptions } from './getopt.js';
import { parseBytes } from './numbers.js';
import { CommandFailure, UsageFailure } from './session.js';

/** The options and operands of one command. */
export class CommandLine {
  readonly operands: readonly string[];
  /** An option was all that counts. */
  readonly isDone: boolean;
  /** Options, in order. */
  readonly given: ReadonlyArray<{ name: string; value: string }>;
  readonly #options: ReadonlyMap<string, string>;

  /**
   * `take` is given each option as it comes, and answers whether nothing after it counts. Errors: UsageFailure in getopt's
   * words, and those of `take`, whichever comes first.
   */
  constructor(
    name: string,
    words: readonly string[],
    letters: string,
    take: (letter: string, value: string) => boolean = () => false,
  ) {
    const { options, operands, problem } = getopt(words, shortOptions(letters));
    this.isDone = options.slice(0, problem?.before).some((option) => take(option.name, option.value));
    if (problem && !this.isDone) throw new UsageFailure(`${name}: ${problemText(problem)}`);
    this.operands = operands;
    this.given = options;
    this.#options = new Map(options.map((option) => [option.name, option.value]));
  }

  has(letter: string): boolean {
    return this.#options.has(letter);
  }

  value(letter: string): string | undefined {
    return this.#options.get(letter);
  }

  /** Of an option that may be given several times, in order. */
  values(letter: string): string[] {
    return this.given.filter(({ name }) => name === letter).map(({ value }) => value);
  }

  /** Exactly this many operands, or the command's help. */
  expect(count: number): void {
    if (this.operands.length !== count) throw new UsageFailure();
  }

  atLeast(count: number): void {
    if (this.operands.length < count) throw new UsageFailure();
  }

  bytes(index: number): number {
    return parseBytes(this.operands[index] ?? '');
  }

  /** A length of one request. */
  lengthBytes(index: number): number {
    const length = this.bytes(index);
    if (length > MAX_IO_BYTES)
      throw new CommandFailure(`length cannot exceed ${MAX_IO_BYTES}, given ${this.operands[index]}`);
    return length;
  }

  /** The sum of the lengths from an operand on, each a buffer of its own in qemu-io. */
  vectorBytes(from: number): number {
    let sum = 0;
    for (const [index, text] of this.operands.entries()) {
      if (index < from) continue;
      const length = parseBytes(text);
      if (length > MAX_IO_BYTES)
        throw new CommandFailure(`Argument '${text}' exceeds maximum size ${MAX_IO_BYTES}`);
      sum += length;
      if (sum > MAX_IO_BYTES)
        throw new CommandFailure(`The total number of bytes exceed the maximum size ${MAX_IO_BYTES}`);
    }
    return sum;
  }
}
