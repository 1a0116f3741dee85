import { assert } from '../base/assert.js';
import { BlockError } from '../base/error.js';
import { MAX_CHAIN_DEPTH, MAX_OPEN_DEPTH } from '../base/limits.js';
import type { Host } from '../host/host.js';
import { tooLong } from './chain-limit.js';
import type { ChildIo, DriverContext, DriverDescription, Json, NodeOptions } from './driver.js';
import { hasProtocol } from './filename.js';
import { FormatGuard } from './format-guard.js';
import { NodeNames, resolveBackingOf } from './full-filename.js';
import type { Graph } from './graph.js';
import { type DiscardMode, nodeModes } from './modes.js';
import { Node } from './node.js';
import { booleanOption, stringOption } from './options.js';
import type { DriverRegistry } from './registry.js';

/** First bytes looked at to tell a format. */
const PROBE_BYTES = 512;

/** How an image is opened beyond its own options; inherited by its children. */
export interface OpenContext {
  readOnly: boolean;
  /** -incoming: no locks, no writes until activated. */
  inactive?: boolean;
  /** Whatever others do with the files is fine (-U): for looking at images in use. */
  forceShare?: boolean;
  /** What becomes of discards where a node's options do not say; default: they are ignored. */
  discard?: DiscardMode;
  /** Nesting so far of implicitly opened files. */
  depth?: number;
  /** The image above in the chain that is being opened: a cycle is refused. */
  overlay?: Overlay;
  /** Of what was opened below so far. */
  names?: NodeNames;
  monitorOwned?: boolean;
  implicit?: boolean;
  /** Nobody said the format of this image: of a raw one the first sector is guarded. */
  guessed?: boolean;
}

/** An image of a chain that is being opened, from the top. */
interface Overlay {
  filename: string;
  above: Overlay | undefined;
  /** This one, and all above it. */
  layers: number;
}

/** Options that every node takes, besides those of its driver. */
const GENERIC_OPTIONS = new Set([
  'driver',
  'node-name',
  'read-only',
  'auto-read-only',
  'force-share',
  'discard',
  'cache',
  'detect-zeroes',
]);

/**
 * Opens images: every file that is opened, by name or implicitly, comes through here. A node's options are those
 * of blockdev-add; a child is a reference (node name) or options of its own.
 */
export class Opener {
  readonly graph: Graph;
  readonly drivers: DriverRegistry;
  /** Told of a format that was guessed: the programs print a warning. */
  onProbed: (filename: string, format: string, readOnly: boolean) => void = () => undefined;

  constructor(graph: Graph, drivers: DriverRegistry) {
    this.graph = graph;
    this.drivers = drivers;
  }

  get host(): Host {
    return this.graph.host;
  }

  /** Opens a node from options, its children first. On failure nothing of it stays. */
  async open(asked: NodeOptions, context: OpenContext): Promise<Node> {
    const depth = (context.depth ?? 0) + 1;
    if (depth > MAX_OPEN_DEPTH + MAX_CHAIN_DEPTH) throw new BlockError('limit', 'Too many nested images');
    const driver = this.drivers.get(stringOption(asked, 'driver') ?? 'raw');
    this.#checkKeys(driver, asked);
    const readOnly = booleanOption(asked, 'read-only') ?? context.readOnly;
    const forceShare = booleanOption(asked, 'force-share') ?? context.forceShare ?? false;
    if (forceShare && !readOnly)
      throw new BlockError('invalid', 'force-share=on can only be used with read-only images');
    const options = forceShare ? { ...asked, 'force-share': true } : asked;
    const modes = nodeModes(options, context.discard);
    const name = stringOption(options, 'node-name');
    // Which discards reach a child is for its parent to say.
    const inherited: OpenContext = { ...inheritable(context), readOnly, forceShare, depth, discard: 'unmap' };
    const node = new Node({
      name: name ?? this.graph.generateName(),
      driver,
      options,
      readOnly,
      modes,
      monitorOwned: context.monitorOwned ?? false,
      implicit: context.implicit ?? false,
      inactive: context.inactive ?? false,
      ...(context.guessed && driver.name === 'raw' && { guard: this.#guard() }),
    });
    try {
      await this.#attachChildren(node, options, inherited);
      node.opened(await driver.open(this.#driverContext(node), options));
      if (driver.supportsBacking) await this.#openBacking(node, options, inherited);
    } catch (error) {
      await this.#discard(node);
      throw error;
    }
    return node;
  }

  /**
   * Opens an image by file name with a format, or by probing when the format is undefined. `json:` names carry
   * options. `extra` goes to the format node (node-name, backing, ...).
   */
  async openImage(
    filename: string,
    format: string | undefined,
    context: OpenContext,
    extra: NodeOptions = {},
  ): Promise<Node> {
    if (filename.startsWith('json:')) return this.open({ ...parseJsonName(filename), ...extra }, context);
    const driver = format ?? (await this.probeFormat(filename));
    const guessed = format === undefined;
    if (guessed) this.onProbed(filename, driver, context.readOnly);
    const description = this.drivers.get(driver);
    const protocol = this.drivers.parseFilename(filename);
    if (description.kind === 'protocol') return this.open({ ...protocol, ...extra }, context);
    return this.open({ driver, file: protocol, ...extra }, { ...context, guessed });
  }

  /** The format that an image's first bytes show. Errors: kind unsupported for one that livedisk lacks. */
  async probeFormat(filename: string): Promise<string> {
    const node = await this.open(this.drivers.parseFilename(filename), { readOnly: true, inactive: true });
    try {
      const header = Buffer.alloc(Math.min(PROBE_BYTES, node.lengthBytes));
      if (header.length > 0) await node.io.read(0, header);
      const format = this.drivers.probe(header, node.filename);
      if (this.drivers.find(format)) return format;
      throw new BlockError('unsupported', `Image format '${format}' is not supported by livedisk`, {
        path: filename,
      });
    } finally {
      await this.#discard(node);
    }
  }

  /** A child by its option: the node named, or one opened from the options given. */
  async resolveReference(reference: Json, context: OpenContext): Promise<Node> {
    if (typeof reference === 'string') {
      const node = this.graph.nodes.get(reference);
      if (!node)
        throw new BlockError('not-found', `Cannot find device='${reference}' nor node-name='${reference}'`);
      return node;
    }
    if (reference === null || typeof reference !== 'object' || Array.isArray(reference)) {
      throw new BlockError('invalid', 'A child is a node name or options');
    }
    return this.open(reference, inheritable(context));
  }

  async #attachChildren(node: Node, options: NodeOptions, context: OpenContext): Promise<void> {
    const opened: Array<[string, Node]> = [];
    try {
      for (const { role, required } of node.driver.children) {
        const reference = options[role];
        if (reference === undefined || reference === null) {
          if (required) throw new BlockError('invalid', `A block device must be specified for "${role}"`);
          continue;
        }
        opened.push([role, await this.resolveReference(reference, context)]);
      }
      // Only now, as QEMU does: what is wrong with a child is told first.
      if (stringOption(options, 'node-name') !== undefined) this.graph.checkNewName(node.name);
      await this.graph.transaction((transaction) => {
        transaction.add(node);
        for (const [role, child] of opened) transaction.attach(node, role, child);
      });
    } catch (error) {
      for (const [, child] of opened) await this.#closeIfUnused(child);
      throw error;
    }
  }

  async #openBacking(node: Node, options: NodeOptions, context: OpenContext): Promise<void> {
    const wanted = options['backing'];
    if (wanted === null) return;
    const names = context.names ?? new NodeNames();
    const below: OpenContext = { ...inheritable(context), readOnly: true, names };
    let child: Node | undefined;
    if (wanted !== undefined) child = await this.resolveReference(wanted, below);
    else if (node.instance.backing) child = await this.#openBackingFile(node, node.instance.backing, below);
    if (!child) return;
    const backing = child;
    if (wanted === undefined) node.automaticBacking = names.of(backing);
    try {
      await this.graph.transaction((transaction) => void transaction.attach(node, 'backing', backing));
    } catch (error) {
      await this.#closeIfUnused(backing);
      throw error;
    }
  }

  async #openBackingFile(
    node: Node,
    backing: { filename: string; format?: string },
    context: OpenContext,
  ): Promise<Node> {
    const filename = resolveBackingOf(node, backing.filename);
    const overlay = overlayOf(node, context.overlay);
    if (overlay.layers > MAX_CHAIN_DEPTH) throw tooLong();
    if (!hasProtocol(filename) && isBeingOpened(filename, overlay)) {
      throw new BlockError('invalid', `Backing file '${filename}' creates an infinite loop.`, {
        path: filename,
      });
    }
    try {
      return await this.openImage(filename, backing.format, { ...context, overlay });
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      throw new BlockError(error.kind, `Could not open backing file: ${error.message}`, {
        cause: error,
        path: filename,
      });
    }
  }

  #guard(): FormatGuard {
    return new FormatGuard((sector) => this.drivers.probe(sector) === 'raw');
  }

  #checkKeys(driver: DriverDescription, options: NodeOptions): void {
    const known = new Set([...driver.optionKeys, ...driver.children.map(({ role }) => role)]);
    if (driver.supportsBacking) known.add('backing');
    for (const key of Object.keys(options)) {
      if (!known.has(key) && !GENERIC_OPTIONS.has(key)) {
        throw new BlockError('invalid', `Block format '${driver.name}' does not support the option '${key}'`);
      }
    }
  }

  #driverContext(node: Node): DriverContext {
    const { graph } = this;
    return {
      host: graph.host,
      nodeName: node.name,
      modes: node.modes,
      get filename() {
        return node.filename;
      },
      get readOnly() {
        return node.readOnly;
      },
      get mayWrite() {
        return node.isWritable;
      },
      child: (role): ChildIo => node.child(role),
      hasChild: (role) => node.children.has(role),
      report: (event) => graph.onDriverEvent(node, event),
    };
  }

  /** Takes back a node whose opening failed, or that was opened only to look. */
  async #discard(node: Node): Promise<void> {
    if (this.graph.nodes.get(node.name) !== node) return;
    assert(node.parents.size === 0, 'a node that failed to open has no parents');
    await this.graph.closeNode(node);
  }

  async #closeIfUnused(node: Node): Promise<void> {
    if (node.parents.size === 0 && !node.monitorOwned && this.graph.nodes.has(node.name)) {
      await this.graph.closeNode(node);
    }
  }
}

function inheritable(context: OpenContext): OpenContext {
  const { monitorOwned: _owned, implicit: _implicit, guessed: _guessed, ...rest } = context;
  return rest;
}

function overlayOf(node: Node, above: Overlay | undefined): Overlay {
  const filename = new NodeNames({ ignoresBacking: true }).of(node);
  return { filename, above, layers: 1 + (above?.layers ?? 0) };
}

function isBeingOpened(filename: string, lowest: Overlay): boolean {
  for (let at: Overlay | undefined = lowest; at; at = at.above) if (at.filename === filename) return true;
  return false;
}

/** Options in a `json:{...}` filename. Errors: kind invalid. */
function parseJsonName(filename: string): NodeOptions {
  const text = filename.slice('json:'.length);
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value))
      return nestDotted(value as NodeOptions);
  } catch (error) {
    throw new BlockError('invalid', 'Could not parse the JSON options', { cause: error, path: filename });
  }
  throw new BlockError('invalid', 'Invalid JSON object given', { path: filename });
}

/** "file.filename": "x" means file: {filename: "x"}. */
function nestDotted(flat: NodeOptions): NodeOptions {
  const nested: NodeOptions = {};
  for (const [key, value] of Object.entries(flat)) {
    const path = key.split('.');
    let at = nested;
    for (const part of path.slice(0, -1)) {
      const next = at[part];
      if (next === undefined) at = at[part] = {};
      else if (typeof next === 'object' && next !== null && !Array.isArray(next)) at = next;
      else throw new BlockError('invalid', `Option '${key}' contradicts '${part}'`);
    }
    at[path.at(-1) ?? ''] = value;
  }
  return nested;
}
