import { deferred } from '../base/async.js';
import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { CommandArguments, CommandName, CommandResult } from '../schema/commands.js';
import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  type JsonObject,
  type JsonValue,
  optional,
  required,
  str,
  struct,
  uint32,
} from '../schema/types.js';
import { lookAt } from '../view/connect.js';
import { afterCreation, afterDeletion, afterReversal } from '../view/plan/point-pictures.js';
import { withoutLeftOpen } from '../view/plan/points.js';
import type { PlannedCommand } from '../view/plan/types.js';
import type { QmpClient } from '../wire/qmp/client.js';
import type { PointPlan } from './messages.js';
import { type MonitorLink, textOf } from './monitor-link.js';

/** The four verbs, of a livedisk by its own commands, of another server by plain QMP. */
export interface PointsCommands {
  list(args: CommandArguments<'x-point-list'>): Promise<CommandResult<'x-point-list'>>;
  create(args: CommandArguments<'x-point-create'>): Promise<Told<'x-point-create'>>;
  /** Answers when the copying is done, too; `onStarted` is called once it is no point any more. */
  delete(args: CommandArguments<'x-point-delete'>, onStarted?: () => void): Promise<Told<'x-point-delete'>>;
  revert(args: CommandArguments<'x-point-revert'>): Promise<Told<'x-point-revert'>>;
}

/** An answer; and, where it is not the server that does it, what the server is sent. */
export type Told<N extends CommandName> = CommandResult<N> & {
  readonly commands?: readonly PlannedCommand[];
};

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
  /** Gone back to, in place of a point; and the disk's active image. */
  image: optional(str),
  disk: optional(str),
  /** Of one that is made. */
  keep: optional(uint32),
  quiesce: optional(str),
  /** What a plan called new images, above which of the active ones. */
  called: optional(arrayOf(struct('called', { node: required(str), 'new-node-name': required(str) }))),
  /** What its plan said: nothing else is done. */
  told: optional(
    struct('told', {
      ends: required(arrayOf(str)),
      invalid: required(arrayOf(str)),
      deletes: required(arrayOf(str)),
    }),
  ),
  /** Told, not done. */
  'dry-run': optional(bool),
});

/** As the commands take it. */
type Asked = Pick<CommandArguments<'x-point-create'>, 'keep' | 'quiesce'> &
  Pick<CommandArguments<'x-point-revert'>, 'name' | 'image' | 'disks'>;

type ToldOfPoint = NonNullable<Infer<typeof Body>['told']>;

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
    const { verb, image, disk, keep, quiesce, told, called = [] } = asked;
    const name = asked.name ?? (image === undefined ? '' : undefined);
    if ((image ?? disk) !== undefined && (verb !== 'revert' || asked.name !== undefined))
      throw new BlockError('invalid', "'image' and 'disk' are for going back without a name");
    if (verb !== 'create' && (keep !== undefined || quiesce !== undefined))
      throw new BlockError('invalid', `'keep' and 'quiesce' are for a point that is made`);
    const more: Asked = given({
      ...{ name, image, keep },
      disks: disk === undefined ? undefined : [{ node: disk }],
      quiesce: quiesce === undefined ? undefined : await this.#options.allowFile(quiesce),
    });
    // Who waits is told of a server that hangs.
    await link.holdShortly((client) => client.execute('query-version'));
    if (verb === 'list') return link.hold(async (client) => (await this.#target(link, client)).list({}));
    if (asked['dry-run'] === true) return link.hold((client) => this.#plan(link, client, verb, more));
    if (this.#options.isReadOnly) throw new BlockError('permission', 'this page only looks (--read-only)');
    if (verb === 'delete') await this.#delete(link, name ?? '', told);
    else
      await link.holdToChange((client, begins) =>
        this.#switch(link, { client, begins }, { verb, called, told }, more),
      );
    return {};
  }

  #target(link: MonitorLink, client: QmpClient): Promise<PointsCommands> {
    const known = this.#targets.get(client);
    if (known) return known;
    const made = this.#options.pointsOver({
      // What is only looked at is no news.
      execute: (command, args = {}) =>
        /query-|-list$/.test(command) || args['dry-run'] === true
          ? client.execute(command, args)
          : link.executeOn(client, command, args),
      onEvent: (listener) => client.onEvent(({ event, data }) => listener(event, data)),
      ended: client.closed,
      close: async () => undefined,
    });
    this.#targets.set(client, made);
    // What failed once is tried again.
    made.catch(() => this.#targets.delete(client));
    return made;
  }

  async #plan(
    link: MonitorLink,
    client: QmpClient,
    verb: 'create' | 'delete' | 'revert',
    asked: Asked,
  ): Promise<PointPlan> {
    const target = await this.#target(link, client);
    const before = withoutLeftOpen(await lookAt(client));
    const { name = '' } = asked;
    if (verb === 'create') {
      const { plan, images, deletes, commands } = await target.create({ ...asked, name, 'dry-run': true });
      const after = afterCreation(before, images);
      return given({ plan, deletes, called: calledOf(images), before, after, commands });
    }
    const { disks } = await target.list({});
    const held = disks.flatMap(({ node: disk, points }) =>
      points.flatMap((point) =>
        point.name === name && point.node !== undefined ? [{ disk, node: point.node }] : [],
      ),
    );
    if (verb === 'delete') {
      const { plan, commands } = await target.delete({ name, 'dry-run': true });
      const nodes = held.map(({ node }) => node);
      const after = afterDeletion(before, nodes, plan.ends);
      return given({ plan, deletes: [], called: [], before, after, commands });
    }
    const { plan, images, commands } = await target.revert({ ...asked, 'dry-run': true });
    const holders = images.map(
      ({ node }) => asked.image ?? held.find(({ disk }) => disk === node)?.node ?? '',
    );
    const after = afterReversal(before, images, holders);
    return given({ plan, deletes: [], called: calledOf(images), before, after, commands });
  }

  /**
   * New images are made only where files may be named: they are told first, and then made as told, under the names that the
   * plan has shown.
   */
  async #switch(
    link: MonitorLink,
    { client, begins }: { client: QmpClient; begins: () => void },
    {
      verb,
      called,
      told,
    }: {
      verb: 'create' | 'revert';
      called: NonNullable<Infer<typeof Body>['called']>;
      told: ToldOfPoint | undefined;
    },
    asked: Asked,
  ): Promise<void> {
    const target = await this.#target(link, client);
    const dry = { ...asked, 'dry-run': true };
    const { name = '' } = asked;
    const { plan, images, deletes } =
      verb === 'create'
        ? await target.create({ ...dry, name })
        : { ...(await target.revert(dry)), deletes: [] };
    assertAsTold(told, { ...plan, deletes });
    for (const { file } of images) await this.#options.allowFile(file);
    for (const old of deletes) {
      const { plan } = await target.delete({ name: old, 'dry-run': true });
      for (const file of plan.ends) await this.#options.allowFile(file);
    }
    const disks = images.map(({ node, file, 'new-node-name': made }) => ({
      ...{ node, file },
      'new-node-name': called.find((one) => one.node === node)?.['new-node-name'] ?? made,
    }));
    begins();
    if (verb === 'create') await target.create({ ...asked, name, disks });
    else await target.revert({ ...asked, disks });
  }

  /** Answers once the copying has begun; its end is told in the log. */
  async #delete(link: MonitorLink, name: string, told: ToldOfPoint | undefined): Promise<void> {
    const started = deferred();
    const ended = link.holdToChange(async (client, begins) => {
      const target = await this.#target(link, client);
      const { plan } = await target.delete({ name, 'dry-run': true });
      assertAsTold(told, { ...plan, deletes: [] });
      for (const file of plan.ends) await this.#options.allowFile(file);
      begins();
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

/** Errors: invalid, where it is about other images than somebody was told. */
function assertAsTold(told: ToldOfPoint | undefined, { ends, invalid, deletes }: ToldOfPoint): void {
  const gist = (one: ToldOfPoint): string => JSON.stringify([one.ends, one.invalid, one.deletes]);
  if (told && gist(told) !== gist({ ends, invalid, deletes })) throw otherThanTold();
}

/** Of a plan that is not any more what it was. */
export function otherThanTold(): BlockError {
  return new BlockError('invalid', 'the disks have changed, and this would do something else than was told', {
    hint: 'Look at the plan again',
  });
}

function calledOf(images: CommandResult<'x-point-create'>['images']): PointPlan['called'] {
  return images.map(({ node, 'new-node-name': made }) => ({ node, 'new-node-name': made }));
}
