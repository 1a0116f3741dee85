import { given } from '../../base/given.js';
import type { View } from '../../view/model.js';
import { copyText, roomText } from '../../view/plan/expected.js';
import type { Action, PlannedCommand } from '../../view/plan/types.js';
import { bracketed, printableJson } from '../../view/words.js';
import type { PointPlan, ToldPlan } from '../messages.js';
import type { Undoable } from './done.js';
import { ask, askToChange } from './store.js';

/** What somebody wants done: told first. */
export interface Proposal {
  readonly title: string;
  /** Errors: why it cannot be. */
  readonly plan: () => Promise<Shown>;
  readonly run: () => Promise<void>;
}

/** A plan as it is shown. */
export interface Shown {
  readonly words: readonly string[];
  readonly facts: readonly string[];
  readonly invalid: readonly string[];
  readonly undo?: string;
  readonly pictures?: { readonly before: View; readonly after: View };
  readonly commands: ReadonlyArray<{ readonly text: string; readonly afterReady?: boolean | undefined }>;
}

/** What was done, and what takes it back as things are then. */
export interface Done extends Undoable {
  readonly title: string;
  readonly undo?: (view: View) => Proposal;
  /** Why it was not done, of what failed when nobody saw its plan any more. */
  readonly error?: string;
}

/** An action; `onDone` hears what takes it back. */
export function proposeAction(
  server: string,
  view: View,
  action: Action,
  onDone: (done: Done) => void,
): Proposal {
  const title = titleOf(action, view);
  let gist: string | undefined;
  return {
    title,
    plan: async () => {
      const plan = await ask<ToldPlan>('plan', { server, action });
      const { words, invalid, undo, before, after, dryRun } = plan;
      gist = plan.gist;
      const refused = dryRun?.refused.map((why) => `the server would refuse it: ${why}`) ?? [];
      return {
        words,
        facts: [copyText(plan) ?? [], dryRun?.room ? roomText(dryRun.room) : []].flat(),
        invalid: [...refused, ...invalid.map(({ id, why }) => `[${id}] ${why}`), ...(dryRun?.spoilt ?? [])],
        ...(undo !== undefined && { undo }),
        // What it was when it was planned stays to be seen while it changes.
        ...(!['job', 'percentiles'].includes(action.kind) && { pictures: { before, after } }),
        commands: plan.commands.map(shownCommand),
      };
    },
    run: async () => {
      const { undo } = await askToChange<{ undo?: Action }>('run', { server, action, ...given({ gist }) });
      onDone({
        title,
        ...(undo && { undo: (now) => proposeAction(server, now, undo, onDone) }),
        ...(undo?.kind === 'job' && { job: { id: undo.job, looks: 0 } }),
      });
    },
  };
}

function titleOf(action: Action, view: View): string {
  if (action.kind === 'job') return `${action.verb} job ${action.job}`;
  if (action.kind === 'unexport') return `take export ${action.name} away`;
  if (action.kind === 'percentiles') return `latency percentiles ${action.isOn ? 'on' : 'off'}`;
  const image = view.images.find(({ id }) => id === action.image);
  return `${action.kind} ${image ? bracketed(image) : `[${action.image}]`}`;
}

export type PointVerb = 'create' | 'delete' | 'revert';

const POINT_TITLES: Readonly<Record<PointVerb, string>> = {
  create: 'make point',
  delete: 'delete point',
  revert: 'go back to point',
};

export interface PointRequest {
  readonly verb: PointVerb;
  /** Missing where an image without one is gone back to. */
  readonly name?: string;
  readonly image?: string;
  /** The active image of the disk that goes back, which several may have the image below them. */
  readonly disk?: string;
  /** What it is called for people. */
  readonly label?: string;
  /** Of one that is made: the oldest beyond so many go. */
  readonly keep?: number;
  /** Of one that is made: the socket of the guest's agent, which freezes its file systems for it. */
  readonly quiesce?: string;
}

/** What is done to a point in time. */
export function proposePoint(
  server: string,
  { verb, label, ...asked }: PointRequest,
  onDone: (done: Done) => void,
): Proposal {
  const { name, image, disk, ...more } = asked;
  const title = name === undefined ? `go back to ${label ?? ''}` : `${POINT_TITLES[verb]} ${name}`;
  let called: PointPlan['called'] = [];
  let told: object | undefined;
  return {
    title,
    plan: async () => {
      const answer = await ask<PointPlan>('points', { server, verb, ...asked, 'dry-run': true });
      const { plan, before, after, commands } = answer;
      called = answer.called;
      told = { ends: plan.ends, invalid: plan.invalid, deletes: answer.deletes };
      const facts = [copyText({ bytesAtMost: plan.bytes }) ?? []].flat();
      if (plan.ends.length > 0) facts.push(`Not of the disk any more: ${plan.ends.join(', ')}.`);
      if (answer.deletes.length > 0) facts.push(`Deleted for it: ${answer.deletes.join(', ')}.`);
      if (plan.users.length > 0) facts.push(`Used by ${plan.users.join(', ')}.`);
      const own = {
        execute: `x-point-${verb}`,
        arguments: given({ name, image, disks: disk === undefined ? undefined : [{ node: disk }], ...more }),
      };
      return {
        ...{ words: plan.words, facts, invalid: plan.invalid },
        pictures: { before, after },
        commands: (commands ?? [own]).map(shownCommand),
      };
    },
    run: async () => {
      await askToChange('points', {
        server,
        verb,
        ...asked,
        ...(called.length > 0 && { called }),
        ...given({ told }),
      });
      const undo = (): Proposal =>
        proposePoint(server, { verb: 'delete', ...(name !== undefined && { name }) }, onDone);
      onDone({ title, ...(verb === 'create' && { undo }) });
    },
  };
}

function shownCommand({ execute, arguments: args, afterReady }: PlannedCommand): Shown['commands'][number] {
  return { text: printableJson({ execute, arguments: args }), afterReady };
}
