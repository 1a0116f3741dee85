import { BlockError } from '../base/error.js';
import { isJsonObject, type JsonObject } from '../schema/types.js';
import type { QmpClient } from '../wire/qmp/client.js';
import type { MonitorLink } from './monitor-link.js';

/** What a person types, as a server's schema has it. */
export interface ConsoleLines {
  /** `command key=value`, or a JSON object. Errors: invalid. */
  parse(line: string): JsonObject;
  /** Words that may stand at the end of the line, and the part of it that they replace. */
  complete(line: string, isOffered: (command: string) => boolean): Promise<[string[], string]>;
}

export interface ConsoleOptions {
  readonly isReadOnly: boolean;
  readonly hasConsole: boolean;
  readonly linesOver: (client: QmpClient) => Promise<ConsoleLines>;
}

/** What read-only pages may ask of a server. */
const QUERIES = /^(?:x-debug-)?query-[a-z-]+$/;
/** What a console may do beside: nothing that names a file, runs a program, or reaches beyond the disks. */
const COMMANDS =
  /^(?:block-(?:stream|commit|job-[a-z-]+|dirty-bitmap-[a-z-]+|export-del|latency-histogram-set|set-write-threshold)|block_(?:resize|set_io_throttle)|blockdev-(?:mirror|backup|snapshot|del)|job-[a-z-]+|stop|cont)$/;
/** Of their arguments, what names files: of extensions, all may. */
const FILE_ARGUMENT = /^(?:backing-file|x-.*)$/;
/** What is sent of words that fit. */
const MOST_WORDS = 50;

/** QMP by hand, where --console allows it. */
export class ConsoleApi {
  readonly #options: ConsoleOptions;
  readonly #lines = new WeakMap<QmpClient, Promise<ConsoleLines>>();

  constructor(options: ConsoleOptions) {
    this.#options = options;
  }

  /** Of a `line`, or of `execute` and `arguments`. Errors: permission; invalid; the server's. */
  async command(link: MonitorLink, body: JsonObject): Promise<object> {
    this.#checkConsole();
    const { line } = body;
    const asked =
      typeof line === 'string'
        ? await link.holdShortly(async (client) => (await this.#linesOf(client)).parse(line))
        : body;
    const { execute, arguments: args = {} } = asked;
    if (typeof execute !== 'string' || !isJsonObject(args))
      throw new BlockError('invalid', 'a command has a name, and an object of arguments');
    this.#check(execute, args);
    if (QUERIES.test(execute))
      return { return: await link.holdShortly((client) => link.executeOn(client, execute, args)) };
    const answer = await link.holdToChange((client, begins) => {
      begins();
      return link.executeOn(client, execute, args);
    });
    return { return: answer };
  }

  async complete(link: MonitorLink, { line }: JsonObject): Promise<object> {
    this.#checkConsole();
    if (typeof line !== 'string') throw new BlockError('invalid', 'a line is needed');
    const [words, part] = await link.holdShortly(async (client) =>
      (await this.#linesOf(client)).complete(line, (command) => this.#refusal(command) === undefined),
    );
    return { words: words.slice(0, MOST_WORDS), part };
  }

  #linesOf(client: QmpClient): Promise<ConsoleLines> {
    const known = this.#lines.get(client);
    if (known) return known;
    const lines = this.#options.linesOver(client);
    this.#lines.set(client, lines);
    // What failed once is tried again.
    lines.catch(() => this.#lines.delete(client));
    return lines;
  }

  #checkConsole(): void {
    if (!this.#options.hasConsole) throw new BlockError('permission', 'there is no console (--console)');
  }

  #check(command: string, args: JsonObject): void {
    const refusal = this.#refusal(command);
    if (refusal !== undefined) throw new BlockError('permission', `${command}: ${refusal}`);
    const named = QUERIES.test(command)
      ? undefined
      : Object.keys(args).find((name) => FILE_ARGUMENT.test(name));
    if (named !== undefined)
      throw new BlockError('permission', `${command}: ${named} may name a file, not from a page`);
  }

  #refusal(command: string): string | undefined {
    if (QUERIES.test(command)) return undefined;
    if (this.#options.isReadOnly) return 'this page only looks (--read-only)';
    return COMMANDS.test(command) ? undefined : 'not from a page';
  }
}
