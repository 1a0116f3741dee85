import { posix } from 'node:path';
import { assert } from '../base/assert.js';
import { BlockError, errnoError, errnoOf } from '../base/error.js';
import { given } from '../base/given.js';
import { MAX_CHAIN_DEPTH, MAX_OPEN_DEPTH } from '../base/limits.js';
import type { Host } from '../host/host.js';
import { GENERIC_OPTIONS } from '../schema/blockdev-options.js';
import { FlatOptions, parseFlatMembers } from '../schema/flat.js';
import { fillMembers, type InputMode } from '../schema/types.js';
import type {
  CacheSettings,
  DriverDescription,
  GivenOptions,
  Json,
  NodeOptions,
  Settings,
} from './driver.js';
import { NodeContext } from './driver-context.js';
import { hasProtocol } from './filename.js';
import { FormatGuard } from './format-guard.js';
import { fullFilename, resolveBackingOf } from './full-filename.js';
import type { Graph } from './graph.js';
import { nodeModes } from './modes.js';
import { attachNamedFiles } from './named-files.js';
import { DEFAULT_CACHE, Node } from './node.js';
import { type ChildPlan, type NodePlan, parseJsonName } from './node-plan.js';
import { leaveBacking, openBacking } from './open-backing.js';
import { inheritable, type OpenContext } from './open-context.js';
import { assertNoPlainSecret } from './plain-secrets.js';
import type { DriverRegistry } from './registry.js';

export type { OpenContext } from './open-context.js';

/** What the nodes below get of a node's options. */
const INHERITED = ['read-only', 'force-share', 'cache'] as const;
const INHERITED_MEMBERS = {
  'read-only': GENERIC_OPTIONS['read-only'],
  'force-share': GENERIC_OPTIONS['force-share'],
  cache: GENERIC_OPTIONS.cache,
};

/** First bytes looked at to tell a format. */
const PROBE_BYTES = 512;

/**
 * Opens images: every file that is opened, by name or implicitly, comes through here. A node's options are those
 * of blockdev-add; a child is a reference (node name) or options of its own.
 */
export class Opener {
  readonly graph: Graph;
  readonly drivers: DriverRegistry;
  /** Files that images name are opened only where they lie in the image's folder. */
  staysInFolders = false;
  /** Told of a format that was guessed: the programs print a warning. */
  onProbed: (filename: string, format: DriverDescription, readOnly: boolean) => void = () => undefined;
  /** Told of options that QEMU warns of. */
  onWarning: (text: string) => void = () => undefined;

  constructor(graph: Graph, drivers: DriverRegistry) {
    this.graph = graph;
    this.drivers = drivers;
  }

  get host(): Host {
    return this.graph.host;
  }

  /**
   * Opens a node from options, its children first. On failure nothing of it stays. Options are checked before anything
   * is opened, whoever gives them; what a command line gives is of mode keyval.
   */
  async open(
    options: NodeOptions,
    context: OpenContext,
    mode: Exclude<InputMode, 'flat'> = 'qmp',
  ): Promise<Node> {
    return this.openPlan(this.drivers.gate.plan(options, mode), context);
  }

  /**
   * Opens a node from options of a `json:` name or of --image-opts (schema/flat.ts). Where they name no driver, the
   * image's first bytes do.
   */
  async openFlat(options: FlatOptions, context: OpenContext): Promise<Node> {
    const plan = this.drivers.gate.planFlat(options);
    if (!(plan instanceof FlatOptions)) return this.openPlan(plan, context);
    const { found, file } = await this.#findDriver(plan, context);
    return this.#over(file, (openedFile) => this.openPlan(found, { ...context, guessed: true, openedFile }));
  }

  /** Opens what the gate has let in. */
  async openPlan(plan: NodePlan, context: OpenContext): Promise<Node> {
    const depth = (context.depth ?? 0) + 1;
    if (depth > MAX_OPEN_DEPTH + MAX_CHAIN_DEPTH) throw new BlockError('limit', 'Too many nested images');
    const { options } = plan;
    const driver = await this.#driverOf(plan);
    const readOnly = options['read-only'] ?? context.readOnly;
    const forceShare = options['force-share'] ?? context.forceShare ?? false;
    checkShare(forceShare, readOnly);
    const modes = nodeModes(options, context.discard);
    const cache: CacheSettings = { ...DEFAULT_CACHE, ...context.cache, ...options.cache };
    const inherited = childContext(context, { readOnly, forceShare, cache });
    const aio = context.aio !== undefined && 'aio' in driver.options.members ? { aio: context.aio } : {};
    const settings = settingsOf(driver, { ...aio, ...options }, { cache, forceShare });
    driver.checkOptions?.(settings, [...plan.children.keys()]);
    const node = new Node({
      name: options['node-name'] ?? this.graph.generateName(),
      driver,
      options,
      settings,
      readOnly,
      modes,
      onlyLook: context.onlyLook ?? false,
      monitorOwned: context.monitorOwned ?? false,
      implicit: context.implicit ?? false,
      inactive: context.inactive ?? false,
      ...(context.guessed && driver.isFallback && { guard: this.newGuard() }),
    });
    if (this.graph.keeper && context.onlyLook !== true) assertNoPlainSecret(node, 'the state');
    try {
      await this.#attachChildren(node, plan, inherited, context.openedFile);
      const ofDriver = new NodeContext(node, this.graph, {
        forCheck: context.forCheck,
        warn: (text) => this.onWarning(text),
      });
      if (driver.namedFiles && (context.onlyLook !== true || context.opensNamedFiles === true))
        await attachNamedFiles(this, node, await driver.namedFiles(ofDriver, settings), inherited);
      node.opened(await driver.open(ofDriver, settings));
      if (context.noBacking === true) leaveBacking(this, plan);
      else if (driver.options.backing) await openBacking(this, node, plan.backing, inherited);
    } catch (error) {
      await this.#discard(node);
      throw error;
    }
    return node;
  }

  async #driverOf({ driver, isByPath, options }: NodePlan): Promise<DriverDescription> {
    const path = isByPath === true ? options['filename'] : undefined;
    if (typeof path !== 'string') return driver;
    return (await this.drivers.claimant(this.host, path)) ?? driver;
  }

  /** Options of the protocol node that a plain filename stands for; of a path, what lies there decides whose it is. */
  async parseFilename(filename: string): Promise<NodeOptions> {
    const options = this.drivers.parseFilename(filename);
    if (hasProtocol(filename)) return this.#parseChildren(options);
    const claimant = await this.drivers.claimant(this.host, filename);
    return claimant ? { ...options, driver: claimant.name } : options;
  }

  /** A name may have names of children in it. */
  async #parseChildren(options: NodeOptions): Promise<NodeOptions> {
    const all = { ...options };
    for (const { role, isImage } of this.drivers.get(options['driver'] as string).options.children) {
      const { filename, driver } = (all[role] ?? {}) as NodeOptions;
      if (typeof filename !== 'string' || driver !== undefined) continue;
      if (filename.startsWith('json:')) all[role] = FlatOptions.of(parseJsonName(filename)).nested();
      else {
        const file = await this.parseFilename(filename);
        all[role] = isImage === true ? { driver: await this.probeFormat(filename), file } : file;
      }
    }
    return all;
  }

  /**
   * Opens an image by file name with a format, or by probing when the format is undefined. `json:` names carry
   * options, over which the format counts. `extra` goes to the format node (node-name, backing, ...).
   */
  async openImage(
    filename: string,
    format: string | undefined,
    context: OpenContext,
    extra: NodeOptions = {},
  ): Promise<Node> {
    if (filename.startsWith('json:')) {
      const named = FlatOptions.of(parseJsonName(filename));
      return this.openFlat(
        named.withOverrides({ ...(format !== undefined && { driver: format }), ...extra }),
        context,
      );
    }
    // What is wrong with that is told before the file is looked at.
    if (format === undefined) checkShare(context.forceShare ?? false, context.readOnly);
    const guessed = format === undefined;
    const protocol = await this.parseFilename(filename);
    const found = guessed
      ? await this.#probe(
          this.drivers.gate.plan(protocol),
          context,
          INHERITED.every((name) => !(name in extra)),
        )
      : undefined;
    const driver = format ?? found?.format ?? '';
    const description = this.drivers.get(driver);
    return this.#over(found?.file, (openedFile) => {
      if (guessed) this.onProbed(filename, description, context.readOnly);
      const isItsName = description.kind === 'filter' && protocol['driver'] === driver;
      if (description.kind === 'protocol' || isItsName)
        return this.open({ ...protocol, ...extra, driver }, context);
      if (description.options.children[0]?.role === 'image')
        return this.open({ driver, image: protocol, ...extra }, context);
      return this.open({ driver, file: protocol, ...extra }, { ...context, guessed, openedFile });
    });
  }

  /** Opens what may take over a file that is open; a file that it has not taken is closed. */
  async #over(file: Node | undefined, open: (file: Node | undefined) => Promise<Node>): Promise<Node> {
    try {
      return await open(file);
    } finally {
      if (file?.parents.size === 0) await this.#discard(file);
    }
  }

  /** The format that an image's first bytes show. Errors: kind unsupported for one that livedisk lacks. */
  async probeFormat(filename: string, cache?: CacheSettings): Promise<string> {
    const options = await this.parseFilename(filename);
    return (await this.#probe(this.drivers.gate.plan(options), given({ readOnly: true, cache }), false))
      .format;
  }

  /**
   * The format that the first bytes of a protocol node show, which is opened as it is for an image of that context. With
   * `keeps` a connection stays, to be that image's: a server may serve a single one.
   */
  async #probe(
    file: string | NodePlan,
    context: OpenContext,
    keeps: boolean,
  ): Promise<{ format: string; filename: string; file?: Node }> {
    const isOwn = typeof file !== 'string';
    const isKept = keeps && isOwn && isConnection(file.driver);
    const { readOnly, forceShare = false } = context;
    const cache = { ...DEFAULT_CACHE, ...context.cache };
    const look = { readOnly: true, inactive: isOwn, cache };
    const node = await this.resolve(
      file,
      isKept ? childContext(context, { readOnly, forceShare, cache }) : look,
    );
    const { filename } = node;
    let found: string | undefined;
    try {
      const header = Buffer.alloc(Math.min(PROBE_BYTES, node.lengthBytes));
      if (header.length > 0) await readHeader(node, header);
      const format = this.drivers.probe(header, filename);
      if (this.drivers.find(format)) found = format;
      else {
        const text = `Image format '${format}' is not supported by livedisk`;
        throw new BlockError('unsupported', text, { path: filename });
      }
    } finally {
      if (isOwn && !(isKept && found !== undefined)) await this.#discard(node);
    }
    return { format: found, filename, ...(isKept && { file: node }) };
  }

  /** Flat options that have a file and no driver, with the driver that the file shows. */
  async #findDriver(
    options: FlatOptions,
    context: OpenContext,
  ): Promise<{ found: NodePlan; file: Node | undefined }> {
    const { gate } = this.drivers;
    const child = gate.flatChild(options.copy(), 'file', true);
    assert(child !== undefined && !(child instanceof FlatOptions), 'options without a driver have a file');
    const own = parseFlatMembers(INHERITED_MEMBERS, options.copy()) as GivenOptions;
    const { format, filename, file } = await this.#probe(
      child,
      {
        ...context,
        readOnly: own['read-only'] ?? context.readOnly,
        forceShare: own['force-share'] ?? context.forceShare ?? false,
        cache: { ...DEFAULT_CACHE, ...context.cache, ...own.cache },
      },
      true,
    );
    try {
      const found = gate.planFlat(options.withOverrides({ driver: format })) as NodePlan;
      this.onProbed(filename, found.driver, found.options['read-only'] ?? context.readOnly);
      return { found, file };
    } catch (error) {
      if (file) await this.#discard(file);
      throw error;
    }
  }

  /** A child by its option: the node named, or one opened from the options given. */
  async resolveReference(reference: Json, context: OpenContext): Promise<Node> {
    if (typeof reference === 'string') return this.resolve(reference, context);
    return this.open(reference as NodeOptions, inheritable(context));
  }

  /** The node that a plan of a child names, or a new one. */
  async resolve(child: ChildPlan, context: OpenContext): Promise<Node> {
    if (typeof child !== 'string') {
      if (child instanceof FlatOptions) return this.openFlat(child, inheritable(context));
      return this.openPlan(child, inheritable(context));
    }
    const node = this.graph.find(child);
    if (node) return node;
    throw new BlockError('not-found', `Cannot find device='${child}' nor node-name='${child}'`);
  }

  async #attachChildren(
    node: Node,
    plan: NodePlan,
    context: OpenContext,
    openedFile: Node | undefined,
  ): Promise<void> {
    const opened: Array<[string, Node]> = [];
    try {
      for (const [role, child] of plan.children) {
        const there = role === 'file' ? openedFile : undefined;
        opened.push([role, there ?? (await this.resolve(child, context))]);
      }
      // Only now, as QEMU does: what is wrong with a child is told first.
      if (plan.options['node-name'] !== undefined) this.graph.checkNewName(node.name);
      await this.graph.transaction((transaction) => {
        transaction.add(node);
        for (const [role, child] of opened) transaction.attach(node, role, child);
      });
      for (const [role, child] of opened)
        if (typeof plan.children.get(role) !== 'string') child.inheritsFrom = node;
    } catch (error) {
      // Whoever names a node that is there has no part in its life.
      const own = opened.filter(([role]) => typeof plan.children.get(role) !== 'string');
      await this.graph.release(own.map(([, child]) => child));
      throw error;
    }
  }

  /** Of a file that an image names, before it is opened. Errors: permission where it is not to be (staysInFolders). */
  checkNamed(node: Node, filename: string): void {
    if (!this.staysInFolders) return;
    const folder = posix.dirname(posix.resolve(fullFilename(node.storage)));
    const isInside =
      !hasProtocol(filename) &&
      posix.resolve(resolveBackingOf(node, filename)).startsWith(folder === '/' ? '/' : `${folder}/`);
    if (isInside) return;
    const text = `The image names '${filename}', which is not in its folder: images that are not trusted may not`;
    throw new BlockError('permission', text, { errno: 'EPERM', path: node.filename });
  }

  /** For an image whose format nobody has said. */
  newGuard(): FormatGuard {
    return new FormatGuard((sector) => this.drivers.find(this.drivers.probe(sector))?.isFallback === true);
  }

  /** Takes back a node whose opening failed, or that was opened only to look. */
  async #discard(node: Node): Promise<void> {
    if (this.graph.nodes.get(node.name) !== node) return;
    assert(node.parents.size === 0, 'a node that failed to open has no parents');
    await this.graph.closeNode(node);
  }
}

/** How the nodes below a node with these settings are opened. */
function childContext(
  context: OpenContext,
  settings: { readOnly: boolean; forceShare: boolean; cache: CacheSettings },
): OpenContext {
  // Which discards reach a child is for its parent to say.
  return { ...inheritable(context), ...settings, depth: (context.depth ?? 0) + 1, discard: 'unmap' };
}

/** To a server, not a file of the host. */
function isConnection({ kind, options }: DriverDescription): boolean {
  return kind === 'protocol' && !('filename' in options.members);
}

function checkShare(forceShare: boolean, readOnly: boolean): void {
  if (forceShare && !readOnly)
    throw new BlockError('invalid', 'force-share=on can only be used with read-only images');
}

async function readHeader(node: Node, header: Buffer): Promise<void> {
  try {
    await node.io.readBuffer(0, header);
  } catch (error) {
    throw errnoError(errnoOf(error), 'Could not read image for determining its format', { cause: error });
  }
}

/** What a driver opens with. */
export function settingsOf(
  driver: DriverDescription,
  options: GivenOptions,
  { cache, forceShare }: { cache: CacheSettings; forceShare: boolean },
): Settings {
  const own = fillMembers(driver.options.members, options);
  return { ...options, ...own, 'force-share': forceShare, cache };
}
