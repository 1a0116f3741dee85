import { BlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { BlockBackend } from '../../block/backend.js';
import type { CacheSettings, DriverDescription, NodeOptions } from '../../block/driver.js';
import { probedWarning } from '../../block/format-guard.js';
import { isOpenHere } from '../../block/file-identity.js';
import { Graph } from '../../block/graph.js';
import type { DiscardMode } from '../../block/modes.js';
import type { Node } from '../../block/node.js';
import { type OpenContext, Opener } from '../../block/open.js';
import { ALL_PERMISSIONS, Permission } from '../../block/permissions.js';
import { DriverRegistry } from '../../block/registry.js';
import { useNode } from '../../block/with-backend.js';
import type { Host } from '../../host/host.js';
import type { FlatOptions } from '../../schema/flat.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { Progress } from './progress.js';
import { formatJsonPretty, type Writable } from '../../wire/qmp/json-format.js';

/** Where text goes, newlines included. */
export interface ToolOutput {
  readonly print: (text: string) => void;
  readonly error: (text: string) => void;
  /** Somebody watches what is printed. */
  readonly terminal?: { nowMs(): number } | undefined;
  /** Calls `tell` whenever the user asks how far it is; the answer ends that. */
  readonly onProgressAsked?: (tell: () => void) => () => void;
}

/** Ends the tool: "qemu-img: MESSAGE" on standard error, and the exit status. */
export class ToolFailure extends Error {
  readonly status: number;
  /** Another line below. */
  readonly hint: string | undefined;

  constructor(message: string, options: { status?: number; hint?: string | undefined } = {}) {
    super(message);
    this.status = options.status ?? 1;
    this.hint = options.hint;
  }
}

/** A command line that cannot be: the message is followed by where to find help. */
export class UsageError extends ToolFailure {
  constructor(message: string) {
    super(message, { hint: "Try 'qemu-img --help' for more information" });
  }
}

/** The same failure with more said before it; its hint stays. Passes other errors on. */
export function explain(error: unknown, prefix: string, status = 1): ToolFailure {
  if (!(error instanceof BlockError)) throw error;
  return new ToolFailure(`${prefix}${error.message}`, { status, hint: error.hint });
}

export interface ImageUse {
  format?: string | undefined;
  /** More options of an image that is named. */
  options?: NodeOptions | undefined;
  /** The name is options (--image-opts). */
  imageOpts?: boolean;
  write?: boolean;
  /** Its length may change: by a write into the last unit of O_DIRECT, which goes beyond its end. */
  resize?: boolean;
  /** Its content is not read. */
  onlyLook?: boolean;
  /** Nobody may write to it meanwhile: what is read is to be one moment's. */
  alone?: boolean;
  forceShare?: boolean;
  /** Whatever is wrong with it. */
  forCheck?: boolean;
  /** false: the image alone, its backing file is not opened. */
  backing?: boolean;
  cache?: CacheSettings;
  writethrough?: boolean;
  /** What becomes of discards; default: they free space. */
  discard?: DiscardMode;
  /** Exit status when it cannot be opened. */
  failure?: number;
}

/** The files in which an image is stored, without those of the images below it. */
function storagesOf(node: Node): Node[] {
  if (node.children.size === 0) return [node];
  return [...node.children].flatMap(([role, edge]) => (role === 'backing' ? [] : storagesOf(edge.node)));
}

/** What all subcommands work with: a graph of their own, gone with the tool. */
export class Tool {
  readonly out: ToolOutput;
  readonly host: Host;
  readonly graph: Graph;
  readonly opener: Opener;
  #open: BlockBackend[] = [];
  readonly #progress: Progress[] = [];

  constructor(out: ToolOutput, host: Host, drivers: Iterable<DriverDescription>) {
    this.out = out;
    this.host = host;
    this.graph = new Graph(host);
    this.opener = new Opener(this.graph, new DriverRegistry(drivers));
    this.graph.onDriverLine = (line) => out.error(`${line}\n`);
    this.opener.onProbed = (name, format, readOnly) => out.error(probedWarning(name, format, readOnly));
    this.opener.onWarning = (text) => out.error(`qemu-img: warning: ${text}\n`);
  }

  /** Opens an image and a user of it. Errors: ToolFailure "Could not open 'FILE': ...". */
  async open(filename: string, use: ImageUse = {}): Promise<BlockBackend> {
    try {
      return await this.openAs(filename, use);
    } catch (error) {
      if (error instanceof ToolFailure) throw error;
      throw explain(error, `Could not open '${filename}': `, use.failure);
    }
  }

  /** The same; the caller says what could not be opened. Errors: BlockError; ToolFailure where the options are wrong. */
  async openAs(filename: string, use: ImageUse = {}): Promise<BlockBackend> {
    const readOnly = use.write !== true;
    const { forceShare = false, discard = 'unmap', onlyLook = false, forCheck = false, cache } = use;
    const noBacking = use.backing === false;
    const common = { readOnly, forceShare, discard, onlyLook, noBacking, forCheck };
    const context: OpenContext = { ...common, ...given({ cache }) };
    const options = use.imageOpts === true ? this.#imageOpts(filename, use) : undefined;
    const node = await (options
      ? this.opener.openFlat(options, context)
      : this.opener.openImage(filename, use.format, context, use.options));
    return this.use(node, use);
  }

  #imageOpts(text: string, { format, forceShare, failure: status }: ImageUse): FlatOptions {
    const refuse = (why: string): ToolFailure => new ToolFailure(why, given({ status }));
    if (format !== undefined) throw refuse('--image-opts and --format are mutually exclusive');
    try {
      const options = parseImageOpts(text, { impliedKey: 'file', warn: this.opener.onWarning });
      const share = options.get('force-share');
      if (forceShare !== true || share === undefined || share === 'on') return options;
    } catch (error) {
      throw explain(error, '', status);
    }
    throw refuse('--force-share/-U conflicts with image options');
  }

  /** A user of a node that is open. */
  async use(node: Node, use: ImageUse = {}): Promise<BlockBackend> {
    const backend = await useNode(this.graph, node, {
      description: 'an unnamed block device',
      perm:
        (use.onlyLook ? 0 : Permission.consistentRead) +
        (use.write ? Permission.write : 0) +
        (use.resize ? Permission.resize : 0),
      shared: ALL_PERMISSIONS - (use.alone ? Permission.write | Permission.resize : 0),
    });
    backend.writethrough = use.writethrough ?? false;
    this.#open.push(backend);
    return backend;
  }

  /** A file that a node writes to, when an image that is open here beside it reads it too. */
  async sharedFile(node: Node): Promise<string | undefined> {
    const own = new Set(storagesOf(node));
    for (const { filename } of own) if (await isOpenHere(this.opener, filename, own)) return filename;
    return undefined;
  }

  /** The line of -p, which ends with the tool at the latest. */
  progress(shown: boolean): Progress {
    const progress = new Progress(this.out, shown);
    this.#progress.push(progress);
    return progress;
  }

  async close(backend: BlockBackend): Promise<void> {
    const { node, root } = backend;
    this.#open = this.#open.filter((other) => other !== backend);
    if (root) await this.graph.transaction((transaction) => transaction.detach(root));
    await this.graph.collect([node]);
  }

  async closeAll(): Promise<void> {
    for (const progress of this.#progress) progress.finish();
    for (const backend of [...this.#open]) await this.close(backend);
  }

  /** Indented JSON and a newline. */
  printJson(value: Writable): void {
    this.out.print(`${formatJsonPretty(value).replaceAll('\r\n', '\n')}\n`);
  }
}
