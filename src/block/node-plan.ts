import { BlockError } from '../base/error.js';
import { parseJson } from '../wire/qmp/json-parser.js';
import {
  BlockdevOptions,
  blockdevOptions,
  type DriverOptions,
  DRIVERS,
  GENERIC_OPTIONS,
  OTHER_DRIVERS,
} from '../schema/blockdev-options.js';
import { FlatOptions, parseFlatMembers } from '../schema/flat.js';
import { type InputMode, isJsonObject, type JsonObject, type JsonValue, type Type } from '../schema/types.js';
import type { DriverDescription, GivenOptions, NodeOptions } from './driver.js';

/** What opens a path where nobody named a protocol. */
const DEFAULT_PROTOCOL = 'file';

/** What a node is to be: the options given to it and to its children, checked and typed, before anything is opened. */
export interface NodePlan {
  readonly driver: DriverDescription;
  /** As given, without defaults and children. */
  readonly options: GivenOptions;
  readonly children: ReadonlyMap<string, ChildPlan>;
  /** undefined: the image says. */
  readonly backing: ChildPlan | null | undefined;
  /** Nobody named the driver, only a path: what lies there may be another's. */
  readonly isByPath?: boolean;
}

/** A node by its name; a new one; or a new one whose driver or file are still to be found (flat options only). */
export type ChildPlan = string | NodePlan | FlatOptions;

interface Drivers {
  [Symbol.iterator](): Iterator<DriverDescription>;
  find(name: string): DriverDescription | undefined;
}

/**
 * The one way by which options become plans for nodes, whoever gives them: QMP, a command line, a `json:` name, a
 * program. Errors: invalid in QEMU's words, unsupported naming what livedisk does not have.
 */
export class OptionGate {
  readonly #drivers: Drivers;
  #type: Type<BlockdevOptions> | undefined;

  constructor(drivers: Drivers) {
    this.#drivers = drivers;
  }

  /** What blockdev-add takes with these drivers. */
  get type(): Type<BlockdevOptions> {
    return (this.#type ??= this.#typeOf([...this.#drivers]));
  }

  #typeOf(drivers: readonly DriverDescription[]): Type<BlockdevOptions> {
    const known = new Map<string, DriverOptions>(Object.entries(DRIVERS));
    const isUsual = drivers.every(({ name, options }) => known.get(name) === options);
    if (isUsual && drivers.length === known.size) return BlockdevOptions;
    return blockdevOptions(new Map(drivers.map(({ name, options }) => [name, options])));
  }

  /** A plan of options that are nested and name every driver. */
  plan(options: NodeOptions, mode: Exclude<InputMode, 'flat'> = 'qmp'): NodePlan {
    return this.planOf(this.type.parse(options, '', mode));
  }

  /** The same of options that `type` has parsed. */
  planOf(parsed: NodeOptions): NodePlan {
    const { driver: name, ...options } = parsed;
    const driver = this.#driver(name as string);
    const children = new Map<string, ChildPlan>();
    const take = (role: string): ChildPlan | null | undefined => {
      const child = options[role] as NodeOptions | string | null | undefined;
      delete options[role];
      return typeof child === 'object' && child !== null ? this.planOf(child) : child;
    };
    for (const { role, isList } of driver.options.children) {
      if (isList === true) {
        for (const [item, child] of this.#listPlans(role, options[role])) children.set(item, child);
        delete options[role];
        continue;
      }
      const child = take(role);
      if (child !== undefined && child !== null) children.set(role, child);
    }
    const backing = driver.options.backing ? take('backing') : undefined;
    return { driver, options: options, children, backing };
  }

  #listPlans(role: string, list: unknown): Array<[string, ChildPlan]> {
    const items = (list ?? []) as Array<NodeOptions | string>;
    return items.map((item, index) => [
      `${role}.${index}`,
      typeof item === 'string' ? item : this.planOf(item),
    ]);
  }

  /**
   * A plan of flat options; the options themselves when they name no driver but have a file that will tell.
   * A protocol without a driver is a file of the host.
   */
  planFlat(given: FlatOptions, isProtocol = false): NodePlan | FlatOptions {
    const name = flatDriver(given, isProtocol);
    if (name === undefined) return given;
    const driver = this.#driver(name);
    const flat = given.copy();
    flat.take('driver');
    driver.modernise?.(flat);
    const children = new Map<string, ChildPlan>();
    for (const { role, required, isImage, isList } of driver.options.children) {
      if (isList === true) {
        for (const [item, child] of this.#flatList(flat, role, isImage !== true)) children.set(item, child);
        continue;
      }
      const child = this.flatChild(flat, role, isImage !== true);
      if (child !== undefined) children.set(role, child);
      else if (required) throw invalid(`A block device must be specified for "${role}"`);
    }
    const backing = this.#flatBacking(driver, flat);
    const options = {
      ...parseFlatMembers(GENERIC_OPTIONS, flat),
      ...parseFlatMembers(driver.options.members, flat),
    } as GivenOptions;
    const { firstKey } = flat;
    if (firstKey !== undefined) throw unknownOption(driver, firstKey);
    return { driver, options, children, backing, isByPath: !given.has('driver') };
  }

  #flatList(flat: FlatOptions, role: string, isProtocol: boolean): Array<[string, ChildPlan]> {
    const list: Array<[string, ChildPlan]> = [];
    for (;;) {
      const item = `${role}.${list.length}`;
      const child = this.flatChild(flat, item, isProtocol);
      if (child === undefined) break;
      list.push([item, child]);
    }
    const rest = flat.take(role);
    const isEmptyList = Array.isArray(rest) && rest.length === 0;
    if (flat.has(role) || !(isEmptyList || isNothing(rest)))
      throw invalid(`Option ${role} is not a valid array`);
    return list;
  }

  /** Takes a child out of flat options; by itself a filename names the protocol's file, not an image. */
  flatChild(flat: FlatOptions, role: string, isProtocol: boolean): ChildPlan | undefined {
    const reference = flat.take(role);
    const own = flat.takeUnder(role);
    if (typeof reference === 'string') {
      if (own.isEmpty) return reference;
      throw invalid('Cannot reference an existing block device with additional options or a new filename');
    }
    if (!isNothing(reference)) throw wrongReference(role, 'BlockdevRef');
    return own.isEmpty ? undefined : this.planFlat(own, isProtocol);
  }

  /** Without a driver or a file it adds to what the image says of its backing file. */
  #flatBacking(driver: DriverDescription, flat: FlatOptions): ChildPlan | null | undefined {
    const reference = flat.take('backing');
    if (reference === null || reference === '') return reference;
    const own = flat.takeUnder('backing');
    if (isNothing(reference) && own.isEmpty) return undefined;
    if (!driver.options.backing) throw invalid("Driver doesn't support backing files");
    if (typeof reference === 'string') return reference;
    if (!isNothing(reference)) throw wrongReference('backing', 'BlockdevRefOrNull');
    const name = own.get('driver');
    const below = typeof name === 'string' ? this.#drivers.find(name) : undefined;
    const needsFile = below === undefined || below.options.children.some(({ role }) => role === 'file');
    if (!own.has('driver') || (needsFile && !namesFile(own))) return own;
    return inBacking(() => this.planFlat(own));
  }

  #driver(name: string): DriverDescription {
    const driver = this.#drivers.find(name);
    if (driver) return driver;
    if (OTHER_DRIVERS.includes(name))
      throw new BlockError('unsupported', `Driver '${name}' is not supported by livedisk yet`);
    throw invalid(`Unknown driver '${name}'`);
  }
}

function invalid(message: string): BlockError {
  return new BlockError('invalid', message);
}

function wrongReference(role: string, expected: string): BlockError {
  return invalid(`Invalid parameter type for '${role}', expected: ${expected}`);
}

function isNothing(value: JsonValue | undefined): boolean {
  return value === undefined || value === null || (isJsonObject(value) && Object.keys(value).length === 0);
}

function flatDriver(flat: FlatOptions, isProtocol: boolean): string | undefined {
  const driver = flat.get('driver');
  if (typeof driver === 'string') return driver;
  if (!isNothing(driver)) throw invalid("Invalid parameter type for 'driver', expected: string");
  if (isProtocol && typeof flat.get('filename') === 'string') return DEFAULT_PROTOCOL;
  if (!isProtocol && flat.has('file')) return undefined;
  throw invalid('Must specify either driver or file');
}

/** Whether flat options say which file an image is in, rather than only how it is to be opened. */
export function namesFile(flat: FlatOptions): boolean {
  const driver = flat.get('file.driver');
  if (typeof flat.get('file') === 'string' || flat.has('file.filename')) return true;
  return driver !== undefined && driver !== DEFAULT_PROTOCOL;
}

/** A filter that has names of its own is a protocol to QEMU. */
export function unknownOption(driver: DriverDescription, key: string): BlockError {
  const { name, kind } = driver;
  return kind === 'format' || (kind === 'filter' && !driver.parseFilename)
    ? invalid(`Block format '${name}' does not support the option '${key}'`)
    : invalid(`Block protocol '${name}' doesn't support the option '${key}'`);
}

/** Says of what goes wrong that it concerns the backing file. */
export function inBacking<T>(body: () => T): T {
  try {
    return body();
  } catch (error) {
    throw backingError(error);
  }
}

export function backingError(error: unknown, path?: string): unknown {
  if (!(error instanceof BlockError)) return error;
  return new BlockError(error.kind, `Could not open backing file: ${error.message}`, {
    cause: error,
    ...(path !== undefined && { path }),
  });
}

/** The options in a `json:{...}` filename. Errors: kind invalid. */
export function parseJsonName(filename: string): JsonObject {
  let value: JsonValue;
  try {
    value = parseJson(filename.slice('json:'.length));
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw new BlockError('invalid', `Could not parse the JSON options: ${error.message}`, {
      cause: error,
      path: filename,
    });
  }
  if (isJsonObject(value)) return value;
  throw new BlockError('invalid', 'Invalid JSON object given', { path: filename });
}
