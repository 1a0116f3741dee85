import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { JsonObject } from '../schema/types.js';
import type { CommandResult } from '../schema/commands.js';
import type { ClusterMap } from '../view/cluster-map.js';
import { imageOf, type View } from '../view/model.js';
import { planAction } from '../view/plan/plan.js';
import type { Action, Plan } from '../view/plan/types.js';
import { parseAction } from './action-input.js';
import { ConsoleApi, type ConsoleOptions } from './console.js';
import type { BitmapStretches } from './messages.js';
import type { MonitorLink } from './monitor-link.js';
import { PointsApi, type PointsOptions } from './points.js';

export interface ApiOptions extends PointsOptions, ConsoleOptions {
  /** Block status of an image that may be named. */
  readonly readMap: (filename: string, format: string) => Promise<ClusterMap>;
}

/** Of a bitmap, some 60,000 stretches: more than there are dots on a screen. */
const MOST_BITMAP_ANSWERS = 14;

/** What a page can ask for, apart from pictures, which are pushed. Errors: BlockError and QmpError, for people. */
export class Api {
  readonly #links: ReadonlyMap<string, MonitorLink>;
  readonly #options: ApiOptions;
  readonly #points: PointsApi;
  readonly #console: ConsoleApi;

  constructor(links: readonly MonitorLink[], options: ApiOptions) {
    this.#links = new Map(links.map((link) => [link.name, link]));
    this.#options = options;
    this.#points = new PointsApi(options);
    this.#console = new ConsoleApi(options);
  }

  /** `what` is the last part of the path. Undefined where there is no such thing. */
  async answer(what: string, body: JsonObject): Promise<object | undefined> {
    switch (what) {
      case 'plan':
        return (await this.#plan(body)).plan;
      case 'run':
        return this.#run(body);
      case 'command':
        return this.#console.command(this.#link(body), body);
      case 'complete':
        return this.#console.complete(this.#link(body), body);
      case 'map':
        return this.#map(body);
      case 'bitmap':
        return this.#bitmap(body);
      case 'points':
        return this.#points.answer(this.#link(body), body);
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
    return given({ jobId: plan.jobId, undo: plan.takenBackBy });
  }

  /** What is dirty of a bitmap of a livedisk; `isCut` where it is more than a page shows. */
  async #bitmap(body: JsonObject): Promise<BitmapStretches> {
    const { node, name } = body;
    const stretches: Array<{ start: number; lengthBytes: number }> = [];
    const link = this.#link(body);
    for (let start = 0, asked = 0; ; asked++) {
      const answer = await link.hold((client) =>
        client.execute('x-bitmap-extents', { node, name, start } as JsonObject),
      );
      const { extents, next } = answer as unknown as CommandResult<'x-bitmap-extents'>;
      for (const extent of extents) stretches.push({ start: extent.start, lengthBytes: extent.length });
      if (next === undefined) return { stretches, isCut: false };
      if (asked === MOST_BITMAP_ANSWERS) return { stretches, isCut: true };
      start = next;
    }
  }

  async #map(body: JsonObject): Promise<ClusterMap> {
    const view: View = await this.#link(body).lookNow();
    const image = imageOf(view, typeof body['image'] === 'string' ? body['image'] : '');
    if (image?.kind !== 'image') throw new BlockError('not-found', 'there is no such image');
    return this.#options.readMap(await this.#options.allowFile(image.filename), image.driver);
  }
}
