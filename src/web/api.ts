import { BlockError } from '../base/error.js';
import { isJsonObject, type JsonObject } from '../schema/types.js';
import type { ClusterMap } from '../view/cluster-map.js';
import { imageOf, type View } from '../view/model.js';
import { planAction } from '../view/plan/plan.js';
import type { Action, Plan } from '../view/plan/types.js';
import { parseAction } from './action-input.js';
import type { MonitorLink } from './monitor-link.js';

export interface ApiOptions {
  readonly isReadOnly: boolean;
  readonly hasConsole: boolean;
  /**
   * The whole path of a file that may be named, in a folder that was allowed. Errors: permission for all others.
   */
  readonly allowFile: (name: string) => Promise<string>;
  /** Block status of an image that may be named. */
  readonly readMap: (filename: string, format: string) => Promise<ClusterMap>;
}

/** What read-only pages may ask of a server. */
const QUERIES = /^(?:x-debug-)?query-[a-z-]+$/;
/** What a console may do beside: nothing that names a file, runs a program, or reaches beyond the disks. */
const COMMANDS =
  /^(?:block-(?:stream|commit|job-[a-z-]+|dirty-bitmap-[a-z-]+|export-del|latency-histogram-set|set-write-threshold)|block_(?:resize|set_io_throttle)|blockdev-(?:mirror|backup|snapshot|del)|job-[a-z-]+|stop|cont)$/;
/** Of their arguments, what names files: of extensions, all may. */
const FILE_ARGUMENT = /^(?:backing-file|x-.*)$/;

/** What a page can ask for, apart from pictures, which are pushed. Errors: BlockError and QmpError, for people. */
export class Api {
  readonly #links: ReadonlyMap<string, MonitorLink>;
  readonly #options: ApiOptions;

  constructor(links: readonly MonitorLink[], options: ApiOptions) {
    this.#links = new Map(links.map((link) => [link.name, link]));
    this.#options = options;
  }

  /** `what` is the last part of the path. Undefined where there is no such thing. */
  async answer(what: string, body: JsonObject): Promise<object | undefined> {
    switch (what) {
      case 'plan':
        return (await this.#plan(body)).plan;
      case 'run':
        return this.#run(body);
      case 'command':
        return this.#command(body);
      case 'map':
        return this.#map(body);
      default:
        return undefined;
    }
  }

  #link({ server }: JsonObject): MonitorLink {
    const link = typeof server === 'string' ? this.#links.get(server) : undefined;
    if (!link) throw new BlockError('not-found', 'there is no such server');
    return link;
  }

  async #plan(body: JsonObject): Promise<{ link: MonitorLink; plan: Plan }> {
    const link = this.#link(body);
    const action = await this.#withAllowedFile(parseAction(body['action']));
    return { link, plan: planAction(await link.lookNow(), action) };
  }

  async #withAllowedFile(action: Action): Promise<Action> {
    return 'file' in action ? { ...action, file: await this.#options.allowFile(action.file) } : action;
  }

  /** Does what a fresh plan says, up to where the job must be ready first. */
  async #run(body: JsonObject): Promise<object> {
    if (this.#options.isReadOnly) throw new BlockError('permission', 'this page only looks (--read-only)');
    const { link, plan } = await this.#plan(body);
    const commands = plan.commands.filter(({ afterReady }) => afterReady !== true);
    for (const { execute, arguments: args } of commands) await link.execute(execute, args);
    return { ...(plan.jobId !== undefined && { jobId: plan.jobId }) };
  }

  async #command(body: JsonObject): Promise<object> {
    if (!this.#options.hasConsole) throw new BlockError('permission', 'there is no console (--console)');
    const { execute, arguments: args = {} } = body;
    if (typeof execute !== 'string' || !isJsonObject(args))
      throw new BlockError('invalid', 'a command has a name, and an object of arguments');
    const isQuery = QUERIES.test(execute);
    if (this.#options.isReadOnly && !isQuery)
      throw new BlockError('permission', `${execute}: this page only looks (--read-only)`);
    if (!isQuery && !COMMANDS.test(execute))
      throw new BlockError('permission', `${execute}: not from a page`);
    const named = isQuery ? undefined : Object.keys(args).find((name) => FILE_ARGUMENT.test(name));
    if (named !== undefined)
      throw new BlockError('permission', `${execute}: ${named} may name a file, not from a page`);
    return { return: await this.#link(body).execute(execute, args) };
  }

  async #map(body: JsonObject): Promise<ClusterMap> {
    const view: View = await this.#link(body).lookNow();
    const image = imageOf(view, typeof body['image'] === 'string' ? body['image'] : '');
    if (image?.kind !== 'image') throw new BlockError('not-found', 'there is no such image');
    return this.#options.readMap(await this.#options.allowFile(image.filename), image.driver);
  }
}
