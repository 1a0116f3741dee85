import { createHash } from 'node:crypto';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { JsonObject } from '../schema/types.js';
import { answerTo } from '../schema/answer.js';
import { DRY_RUN_RETURNS } from '../schema/dry-run.js';
import type { CommandResult } from '../schema/commands.js';
import type { ClusterMap } from '../view/cluster-map.js';
import { imageOf, type View } from '../view/model.js';
import { lookAt } from '../view/connect.js';
import { withMap } from '../view/plan/expected.js';
import { exportHint } from '../view/plan/exports.js';
import { disksOf, gistOf, planAction } from '../view/plan/plan.js';
import type { Action, Plan, PlannedCommand } from '../view/plan/types.js';
import { numberOf, objectOf, objectsOf } from '../view/answers.js';
import type { QmpClient } from '../wire/qmp/client.js';
import { QmpError } from '../wire/qmp/registry.js';
import { parseAction } from './action-input.js';
import { ConsoleApi, type ConsoleOptions } from './console.js';
import type { Beside, BitmapStretches, Heat, ToldPlan } from './messages.js';
import type { MonitorLink } from './monitor-link.js';
import { otherThanTold, PointsApi, type PointsOptions } from './points.js';

export interface ApiOptions extends PointsOptions, ConsoleOptions {
  /** The same of a file that there is not. Errors: permission; exists. */
  readonly allowNewFile: (name: string) => Promise<string>;
  /** Images beside those of a server, in folders that may be looked into. Errors: permission, where there are none. */
  readonly lookBeside: (server: string, view: View) => Promise<Beside>;
}

/** More than a page has in its list of what was done. */
const KEPT_JOBS = 100;
/** Of a bitmap, some 60,000 stretches: more than there are dots on a screen. */
const MOST_BITMAP_ANSWERS = 14;

/** What a page can ask for, apart from pictures, which are pushed. Errors: BlockError and QmpError, for people. */
export class Api {
  readonly #links: ReadonlyMap<string, MonitorLink>;
  readonly #options: ApiOptions;
  readonly #points: PointsApi;
  readonly #console: ConsoleApi;
  /** Of jobs that pages began: what takes one back must not end another. */
  readonly #jobs = new Map<MonitorLink, string[]>();

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
        return this.#fullPlan(body);
      case 'run':
        return this.#run(body);
      case 'command':
        return this.#console.command(this.#link(body), body);
      case 'complete':
        return this.#console.complete(this.#link(body), body);
      case 'map':
        return this.#map(body);
      case 'heat':
        return this.#heat(body);
      case 'beside':
        return this.#beside(body);
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

  /** Of what a fresh look tells. */
  #plan(link: MonitorLink, seen: View, action: Action): { view: View; plan: Plan; gist: string } {
    const view = { ...seen, pastJobs: this.#jobs.get(link) ?? [] };
    const plan = planAction(view, action);
    return { view, plan, gist: digest(gistOf(view, plan)) };
  }

  /** With what takes a look at the disk: how much is copied, and what is spoilt that nobody has open. */
  async #fullPlan(body: JsonObject): Promise<ToldPlan> {
    const link = this.#link(body);
    const action = await this.#withAllowedFile(parseAction(body['action']));
    const { view, plan, gist } = this.#plan(link, await link.lookNow(), action);
    const { copies } = plan;
    const map = copies && (await link.mapSoon(view, copies.image));
    const base = plan.commands.find(({ execute }) => execute === 'block-commit')?.arguments['base-node'];
    const beside =
      typeof base === 'string' ? await this.#options.lookBeside(link.name, view).catch(noFiles) : undefined;
    const changed = new Set([base, ...plan.invalid.map(({ id }) => id)]);
    const spoilt = (beside?.files ?? []).filter(
      ({ standsOn }) => standsOn !== undefined && changed.has(standsOn),
    );
    const invalid = spoilt.map(({ file, standsOn }) => ({
      id: file,
      why: `is not open here, and stands on [${standsOn ?? ''}]`,
    }));
    const told = { ...(map ? withMap(plan, map) : plan), invalid: [...plan.invalid, ...invalid] };
    const counted = await dryRunOf(link, plan);
    return {
      ...(counted ? withDryRun(told, counted) : told),
      before: disksOf(view, plan.action),
      gist,
    };
  }

  /** What an action names comes to be: nothing may be there. */
  async #withAllowedFile(action: Action): Promise<Action> {
    if (!('file' in action) || action.file === undefined) return action;
    return { ...action, file: await this.#options.allowNewFile(action.file) };
  }

  /**
   * Does what a fresh plan says, up to where the job must be ready first, over one connection: a server that has come in the
   * place of the one that was looked at is another's. Errors: invalid, if `gist` was told of another plan.
   */
  async #run(body: JsonObject): Promise<object> {
    if (this.#options.isReadOnly) throw new BlockError('permission', 'this page only looks (--read-only)');
    const link = this.#link(body);
    const action = await this.#withAllowedFile(parseAction(body['action']));
    const { jobId, takenBackBy } = await link.holdToChange(async (client, begins) => {
      const { plan, gist } = this.#plan(link, await link.answered(lookAt(client)), action);
      if (body['gist'] !== undefined && body['gist'] !== gist) throw otherThanTold();
      begins();
      await runAll(link, client, plan);
      return plan;
    });
    if (jobId !== undefined) this.#jobs.set(link, [...(this.#jobs.get(link) ?? []), jobId].slice(-KEPT_JOBS));
    return given({ jobId, undo: takenBackBy });
  }

  /** What is dirty of a bitmap of a livedisk; `isCut` where it is more than a page shows. */
  async #bitmap(body: JsonObject): Promise<BitmapStretches> {
    const { node, name } = body;
    const stretches: Array<{ start: number; lengthBytes: number }> = [];
    const link = this.#link(body);
    for (let start = 0, asked = 0; ; asked++) {
      const answer = await link.holdShortly((client) =>
        client.execute('x-bitmap-extents', { node, name, start } as JsonObject),
      );
      const { extents, next } = objectOf(answer);
      for (const { start: from, length } of objectsOf(extents))
        stretches.push({ start: numberOf(from) ?? 0, lengthBytes: numberOf(length) ?? 0 });
      if (typeof next !== 'number') return { stretches, isCut: false };
      if (asked === MOST_BITMAP_ANSWERS) return { stretches, isCut: true };
      start = next;
    }
  }

  async #map(body: JsonObject): Promise<ClusterMap> {
    const link = this.#link(body);
    const view = await link.lookNow();
    const map = await link.mapOf(view, imageIn(view, body));
    if (!map) throw new BlockError('limit', 'the map of this disk is too long for a page');
    return map;
  }

  /** Errors: the server's, where it is no livedisk. */
  async #heat(body: JsonObject): Promise<Heat> {
    const link = this.#link(body);
    const { node } = body;
    const answer = await link.holdShortly((client) =>
      client.execute('x-query-write-heat', { node } as JsonObject),
    );
    return answerTo('x-query-write-heat', answer);
  }

  async #beside(body: JsonObject): Promise<Beside> {
    const link = this.#link(body);
    return this.#options.lookBeside(link.name, await link.lookNow());
  }
}

/** Errors: those of the first that fails; what was done before it and can be taken back is. */
async function runAll(link: MonitorLink, client: QmpClient, { action, commands }: Plan): Promise<void> {
  const done: PlannedCommand[] = [];
  try {
    for (const command of commands.filter(({ afterReady }) => afterReady !== true)) {
      await link.executeOn(client, command.execute, command.arguments).catch((error: unknown) => {
        if (command.mayBeGone !== true || !(error instanceof QmpError)) throw error;
      });
      done.unshift(command);
    }
  } catch (error) {
    // Why it could not be done is told, whether or not that can be taken back.
    for (const { takenBackBy } of done)
      if (takenBackBy !== undefined) await link.executeOn(client, takenBackBy, {}).catch(() => undefined);
    throw withHint(action, error);
  }
}

function withHint({ kind }: Action, error: unknown): unknown {
  const hint = kind === 'export' ? exportHint(String(error)) : undefined;
  return hint === undefined || !(error instanceof QmpError)
    ? error
    : new BlockError('invalid', error.message, { hint, cause: error });
}

type DryRun = NonNullable<CommandResult<'block-stream'>['x-dry-run']>;

/** What a livedisk says that it would do; other servers, and older ones, cannot be asked. Errors: those of connecting. */
async function dryRunOf(link: MonitorLink, { commands }: Plan): Promise<DryRun | undefined> {
  const [first] = commands;
  if (!first || !Object.hasOwn(DRY_RUN_RETURNS, first.execute)) return undefined;
  const args = { ...first.arguments, 'x-dry-run': true };
  const answer = await link
    .holdShortly(async (client) =>
      // Whoever does not know the argument might do what it is about.
      client.hasExtensions ? client.execute(first.execute, args) : undefined,
    )
    .catch((error: unknown) => {
      if (error instanceof QmpError) return undefined;
      throw error;
    });
  if (answer === undefined) return undefined;
  return answerTo('block-stream', answer)['x-dry-run'];
}

/** The plan with what a livedisk counts and finds; what happens is said in the plan's own words. */
function withDryRun(plan: Plan, { refused, invalid, bytes, seconds, space }: DryRun): Plan {
  // A server that takes no time for it copies nothing.
  const isCopy = seconds !== undefined;
  const room = isCopy && space && { path: space.path, neededBytes: space.needed, freeBytes: space.free };
  const spoilt = invalid.filter((text) => !plan.invalid.some(({ id }) => text.startsWith(`${id} `)));
  return { ...plan, ...(isCopy && { bytes }), dryRun: { refused, spoilt, ...(room && { room }) } };
}

/** Errors: not-found. */
function imageIn(view: View, { image: id }: JsonObject): string {
  const image = imageOf(view, typeof id === 'string' ? id : '');
  if (image?.kind !== 'image') throw new BlockError('not-found', 'there is no such image');
  return image.id;
}

/** Of a chain of hundreds of images, a few bytes. */
function digest(text: string): string {
  return createHash('sha256').update(text).digest('base64url');
}

function noFiles(): undefined {
  return undefined;
}
