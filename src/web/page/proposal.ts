import type { View } from '../../view/model.js';
import type { Action, Plan } from '../../view/plan/types.js';
import { bracketed } from '../../view/words.js';
import type { PointPlan } from '../messages.js';
import { copyFact } from './plan-view.js';
import { ask } from './store.js';

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
export interface Done {
  readonly title: string;
  readonly undo?: (view: View) => Proposal;
}

/** An action; `onDone` hears what takes it back. */
export function proposeAction(
  server: string,
  view: View,
  action: Action,
  onDone: (done: Done) => void,
): Proposal {
  const title = titleOf(action, view);
  return {
    title,
    plan: async () => {
      const plan = await ask<Plan>('plan', { server, action });
      const { words, invalid, undo, after } = plan;
      return {
        words,
        facts: copyFact(plan.bytesAtMost),
        invalid: invalid.map(({ id, why }) => `[${id}] ${why}`),
        ...(undo !== undefined && { undo }),
        // What it was when it was planned stays to be seen while it changes.
        ...(!['job', 'percentiles'].includes(action.kind) && { pictures: { before: view, after } }),
        commands: plan.commands.map(({ execute, arguments: args, afterReady }) => ({
          text: JSON.stringify({ execute, arguments: args }),
          afterReady,
        })),
      };
    },
    run: async () => {
      const { undo } = await ask<{ undo?: Action }>('run', { server, action });
      onDone({ title, ...(undo && { undo: (now) => proposeAction(server, now, undo, onDone) }) });
    },
  };
}

function titleOf(action: Action, view: View): string {
  if (action.kind === 'job') return `${action.verb} job ${action.job}`;
  if (action.kind === 'unexport') return `take export ${action.name} away`;
  if (action.kind === 'percentiles') return `latency percentiles ${action.isOn ? 'on' : 'off'}`;
  const image = view.images.find(({ id }) => id === action.image);
  return image ? `${action.kind} ${bracketed(image)}` : action.kind;
}

export type PointVerb = 'create' | 'delete' | 'revert';

const POINT_TITLES: Readonly<Record<PointVerb, string>> = {
  create: 'make point',
  delete: 'delete point',
  revert: 'go back to point',
};

/** What is done to a point in time. */
export function proposePoint(
  server: string,
  verb: PointVerb,
  name: string,
  onDone: (done: Done) => void,
): Proposal {
  const title = `${POINT_TITLES[verb]} ${name}`;
  return {
    title,
    plan: async () => {
      const answer = await ask<PointPlan>('points', { server, verb, name, 'dry-run': true });
      const { plan, before, after } = answer;
      const facts = copyFact(plan.bytes, plan.seconds);
      if (plan.ends.length > 0) facts.push(`Not of the disk any more: ${plan.ends.join(', ')}.`);
      if (plan.users.length > 0) facts.push(`Also used by ${plan.users.join(', ')}.`);
      const text = JSON.stringify({ execute: `x-point-${verb}`, arguments: { name } });
      return {
        ...{ words: plan.words, facts, invalid: plan.invalid },
        pictures: { before, after },
        commands: [{ text }],
      };
    },
    run: async () => {
      await ask('points', { server, verb, name });
      const undo = (): Proposal => proposePoint(server, 'delete', name, onDone);
      onDone({ title, ...(verb === 'create' && { undo }) });
    },
  };
}
