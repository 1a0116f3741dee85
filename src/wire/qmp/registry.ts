import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import { any, type JsonObject, type JsonValue, refuseExtensions, type Type } from '../../schema/types.js';
import type { Writable } from './json-format.js';
import { type ErrorClass, isForPeople, QmpError } from './qmp-error.js';

export { type ErrorClass, isForPeople, QmpError };

/** One command of the schema. */
export interface CommandDefinition<A = unknown> {
  readonly name: string;
  readonly arguments: Type<A>;
  readonly returns?: Type<unknown>;
  readonly description?: string;
  /** May run ahead of commands that wait or run. */
  readonly outOfBand?: boolean;
  /** livedisk's own: there for clients that asked for its extensions. */
  readonly isExtension?: boolean;
}

export function command<A>(name: string, args: Type<A>, returns?: Type<unknown>): CommandDefinition<A> {
  return returns === undefined ? { name, arguments: args } : { name, arguments: args, returns };
}

/** What a handler answers whose command still waits for a peer that may never answer: others go on meanwhile. */
export class Waiting {
  readonly result: Promise<void>;

  constructor(result: Promise<void>) {
    this.result = result;
    // Handled by whoever awaits it, which may be a turn later.
    result.catch(() => undefined);
  }
}

export type Outcome = Writable | void | Waiting;

/** Who gives a command. */
export interface Caller {
  /** The oldest descriptor that came with its messages and is not taken yet; the taker owns it. */
  takeDescriptor(): number | undefined;
  /** Whether it asked for what QEMU does not have; others see nothing of it. */
  readonly hasExtensions: boolean;
  /** It may go, and the hub is told. */
  readonly isConnection?: boolean;
  /** Its command, which waited for others, begins. */
  begins?(): void;
}

/** The program itself. */
const NOBODY: Caller = { takeDescriptor: () => undefined, hasExtensions: true };

export type Handler<A> = (args: A, caller: Caller) => Promise<Outcome> | Outcome;

export type Wrapper = (
  args: JsonObject,
  caller: Caller,
  next: (args?: JsonObject) => Promise<Outcome> | Outcome,
) => Promise<Outcome> | Outcome;

interface Registered {
  definition: CommandDefinition;
  handler: Handler<unknown>;
}

/** The commands of one engine. Only what is registered exists for clients. */
export class CommandRegistry {
  readonly #commands = new Map<string, Registered>();
  /** Sees a command through that a client gives in its turn. */
  around: (caller: Caller, name: string, args: JsonObject, run: () => Promise<Outcome>) => Promise<Outcome> =
    (_caller, _name, _args, run) => run();

  register<A>(definition: CommandDefinition<A>, handler: Handler<A>): void {
    this.#commands.set(definition.name, { definition, handler: handler as Handler<unknown> });
  }

  /**
   * Puts a handler in front of what is there of that name, which takes the arguments as they come; `next` checks them and
   * does what was done before.
   */
  wrap(name: string, handler: Wrapper): void {
    const before = this.#commands.get(name);
    const definition = { ...before?.definition, name, arguments: any };
    this.register<unknown>(definition, (args, caller) =>
      handler(args as JsonObject, caller, (changed = args as JsonObject) => {
        if (!before) throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
        if (!caller.hasExtensions) refuseExtensions(before.definition.arguments, changed);
        return before.handler(before.definition.arguments.parse(changed, '', 'qmp'), caller);
      }),
    );
  }

  /** Another handler where `isFor` holds of a command's arguments. */
  divert<A>(name: string, isFor: (args: A) => boolean, handler: Handler<A>): void {
    const before = this.#commands.get(name);
    assert(before, () => `no command '${name}' is there to be diverted`);
    this.register<A>(before.definition as CommandDefinition<A>, (args, caller) =>
      isFor(args) ? handler(args, caller) : before.handler(args, caller),
    );
  }

  /** Those that are there for the caller. */
  names(caller: Pick<Caller, 'hasExtensions'> = NOBODY): string[] {
    return this.definitions(caller).map(({ name }) => name);
  }

  definitions(caller: Pick<Caller, 'hasExtensions'> = NOBODY): CommandDefinition[] {
    const all = [...this.#commands.values()].map(({ definition }) => definition);
    return all.filter(({ isExtension }) => caller.hasExtensions || !isExtension);
  }

  find(name: string, caller: Pick<Caller, 'hasExtensions'> = NOBODY): CommandDefinition | undefined {
    return this.#find(name, caller)?.definition;
  }

  #find(name: string, { hasExtensions }: Pick<Caller, 'hasExtensions'>): Registered | undefined {
    const found = this.#commands.get(name);
    return found?.definition.isExtension && !hasExtensions ? undefined : found;
  }

  /** Checks the arguments and runs the command. Errors: QmpError, or what the handler throws. */
  async execute(name: string, args: JsonObject, caller: Caller = NOBODY): Promise<Writable | Waiting> {
    const found = this.#find(name, caller);
    if (!found) throw new QmpError('CommandNotFound', `The command ${name} has not been found`);
    if (!caller.hasExtensions) refuseExtensions(found.definition.arguments, args);
    const parsed = found.definition.arguments.parse(args, '', 'qmp');
    const run = async (): Promise<Outcome> => found.handler(parsed, caller);
    const outcome = await (found.definition.outOfBand ? run() : this.around(caller, name, args, run));
    return outcome ?? {};
  }

  /** The same, seen through where it waits for a peer. Errors: those of execute(), and of what it waits for. */
  async complete(name: string, args: JsonObject): Promise<Writable> {
    const outcome = await this.execute(name, args);
    if (!(outcome instanceof Waiting)) return outcome;
    await outcome.result;
    return {};
  }
}

/** Class and description by which a client sees an error. */
export function toQmpError(error: unknown): { class: ErrorClass; desc: string } {
  if (error instanceof QmpError) return { class: error.errorClass, desc: error.message };
  const desc = error instanceof Error ? error.message : String(error);
  if (error instanceof BlockError) {
    if (error.kind === 'device-not-found') return { class: 'DeviceNotFound', desc };
    if (error.kind === 'device-not-active') return { class: 'DeviceNotActive', desc };
  }
  return { class: 'GenericError', desc };
}

export type { JsonObject, JsonValue };
