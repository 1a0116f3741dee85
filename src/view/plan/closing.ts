import type { Image } from '../model.js';
import { listed } from './checks.js';
import type { Plan } from './types.js';

/** Commands that servers refuse for an image which another has for its backing file. */
const OF_ROOTS = new Set(['blockdev-snapshot-sync', 'drive-mirror', 'block-commit', 'block_resize']);

/** The plan with what closes images that are left open above its disk (see left-open.ts) first, where they are in its way. */
export function withClosing(left: readonly Image[], plan: Plan): Plan {
  if (!plan.commands.some(({ execute }) => OF_ROOTS.has(execute))) return plan;
  const { words, commands } = closing(left);
  return { ...plan, words: [...words, ...plan.words], commands: [...commands, ...plan.commands] };
}

/** What closes images, which are in their order from the top, and says so. */
export function closing(images: readonly Image[]): Pick<Plan, 'words' | 'commands'> {
  if (images.length === 0) return { words: [], commands: [] };
  const how = images.length === 1 ? 'is closed first; its file stays' : 'are closed first; their files stay';
  return {
    words: [`${listed(images)}, which nobody uses, ${how}.`],
    commands: images
      // Others cannot be, and go with what is above them.
      .filter(({ isImplicit }) => !isImplicit)
      .map(({ id }) => ({ execute: 'blockdev-del', arguments: { 'node-name': id }, mayBeGone: true })),
  };
}
