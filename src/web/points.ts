import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import type { CommandArguments, CommandResult } from '../schema/commands.js';
import {
  bool,
  enumOf,
  type JsonObject,
  type JsonValue,
  optional,
  required,
  str,
  struct,
} from '../schema/types.js';
import { lookAt } from '../view/connect.js';
import { afterCreation, afterDeletion, afterReversal } from '../view/plan/point-pictures.js';
import type { QmpClient } from '../wire/qmp/client.js';
import type { PointPlan } from './messages.js';
import { type MonitorLink, textOf } from './monitor-link.js';

/** The four verbs, of a livedisk by its own commands, of another server by plain QMP. */
export interface PointsCommands {
  list(args: CommandArguments<'x-point-list'>): Promise<CommandResult<'x-point-list'>>;
  create(args: CommandArguments<'x-point-create'>): Promise<CommandResult<'x-point-create'>>;
  /** Answers when the copying is done, too; `onStarted` is called once it is no point any more. */
  delete(
    args: CommandArguments<'x-point-delete'>,
    onStarted?: () => void,
  ): Promise<CommandResult<'x-point-delete'>>;
  revert(args: CommandArguments<'x-point-revert'>): Promise<CommandResult<'x-point-revert'>>;
}

/** A connected server. */
export interface PointsLink {
  execute(command: string, args?: JsonObject): Promise<JsonValue>;
  onEvent(listener: (event: string, data: JsonObject) => void): () => void;
  readonly ended: Promise<unknown>;
  close(): Promise<void>;
}

export interface PointsOptions {
  readonly isReadOnly: boolean;
  /** The whole path of a file that may be named, in a folder that was allowed. Errors: permission for all others. */
  readonly allowFile: (name: string) => Promise<string>;
  readonly pointsOver: (link: PointsLink) => Promise<PointsCommands>;
}

const VERBS = ['list', 'create', 'delete', 'revert'] as const;
const Body = struct('points', {
  server: required(str),
  verb: required(enumOf('verb', VERBS)),
  name: optional(str),
  /** Told, not done. */
  'dry-run': optional(bool),
});

/** Points in time, as a page asks for them. */
export class PointsApi {
  readonly #options: PointsOptions;
  readonly #targets = new WeakMap<QmpClient, Promise<PointsCommands>>();

  constructor(options: PointsOptions) {
    this.#options = options;
  }

  /** Errors: invalid; permission; those of the commands. */
  async answer(link: MonitorLink, body: JsonObject): Promise<object> {
    const asked = Body.parse(body, 'points', 'qmp');
    const { verb, name = '' } = asked;
    if (verb === 'list') return link.hold(async (client) => (await this.#target(link, client)).list({}));
    if (asked['dry-run'] === true) return link.hold((client) => this.#plan(link, client, verb, name));
    if (this.#options.isReadOnly) throw new BlockError('permission', 'this page only looks (--read-only)');
    if (verb === 'delete') await this.#delete(link, name);
    else await link.hold((client) => this.#switch(link, client, verb, name));
    return {};
  }

  #target(link: MonitorLink, client: QmpClient): Promise<PointsCommands> {
    const known = this.#targets.get(client);
    if (known) return known;
    const made = this.#options.pointsOver({
      // What is only looked at is no news.
      execute: (command, args = {}) =>
        /query-|-list$/.test(command) ? client.execute(command, args) : link.executeOn(client, command, args),
      onEvent: (listener) => client.onEvent(({ event, data }) => listener(event, data)),
      ended: client.closed,
      close: async () => undefined,
    });
    this.#targets.set(client, made);
    return made;
  }

  async #plan(
    link: MonitorLink,
    client: QmpClient,
    verb: 'create' | 'delete' | 'revert',
    name: string,
  ): Promise<PointPlan> {
    const target = await this.#target(link, client);
    const before = await lookAt(client);
    const dry = { name, 'dry-run': true };
    if (verb === 'create') {
      const { plan, images } = await target.create(dry);
      return { plan, before, after: afterCreation(before, images) };
    }
    const { disks } = await target.list({});
    const held = disks.flatMap(({ disk, points }) =>
      points.flatMap((point) =>
        point.name === name && point.node !== undefined ? [{ disk, node: point.node }] : [],
      ),
    );
    if (verb === 'delete') {
      const { plan } = await target.delete(dry);
      return {
        plan,
        before,
        after: afterDeletion(
          before,
          held.map(({ node }) => node),
          plan.ends,
        ),
      };
    }
    const { plan, images } = await target.revert(dry);
    const holders = images.map(({ disk }) => held.find((one) => one.disk === disk)?.node ?? '');
    return { plan, before, after: afterReversal(before, images, holders) };
  }

  /** New images are made only where files may be named: they are told first, and then made as told. */
  async #switch(
    link: MonitorLink,
    client: QmpClient,
    verb: 'create' | 'revert',
    name: string,
  ): Promise<void> {
    const target = await this.#target(link, client);
    const { images } = await target[verb]({ name, 'dry-run': true });
    for (const { file } of images) await this.#options.allowFile(file);
    const disks = images.map(({ node, file, 'new-node-name': made }) => ({
      ...{ node, file, 'new-node-name': made },
    }));
    await target[verb]({ name, disks });
  }

  /** Answers once the copying has begun; its end is told in the log. */
  async #delete(link: MonitorLink, name: string): Promise<void> {
    const started = deferred();
    const ended = link.hold(async (client) => {
      const target = await this.#target(link, client);
      const { plan } = await target.delete({ name, 'dry-run': true });
      for (const file of plan.ends) await this.#options.allowFile(file);
      await target.delete({ name }, () => started.resolve());
    });
    let hasStarted = false;
    await Promise.race([started.promise.then(() => void (hasStarted = true)), ended]);
    ended.then(
      () => link.log({ kind: 'note', name: 'point deleted', text: name }),
      (error: unknown) => {
        if (hasStarted) link.log({ kind: 'error', name: `deleting point ${name}`, text: textOf(error) });
      },
    );
  }
}
