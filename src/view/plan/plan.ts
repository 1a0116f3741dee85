import { unreachable } from '../../base/assert.js';
import { imagesLeftOpen, leftOpenAbove } from '../left-open.js';
import { imageOf, type View } from '../model.js';
import { isNewNode } from './checks.js';
import { withClosing } from './closing.js';
import { planBackup, planJobVerb, planMirror, planResize } from './copies.js';
import { planExport, planUnexport } from './exports.js';
import { planCommit, planSnapshot, planStream } from './layers.js';
import { planPercentiles } from './percentiles.js';
import { planDelete, withoutLeftOpen } from './points.js';
import type { Action, Plan } from './types.js';

/**
 * What an action does, before it is done. Images that are left open above a disk's active one are none of its layers: `after`
 * is without them, unless they are what the action is about. Errors: invalid, saying why it cannot be.
 */
export function planAction(view: View, action: Action): Plan {
  const disks = disksOf(view, action);
  if (disks === view) return planOn(view, action);
  // Their names are taken all the same.
  if ('node' in action) isNewNode(view, action.node);
  const plan = planOn(disks, action);
  return 'image' in action
    ? withClosing(leftOpenAbove(view, action.image, imagesLeftOpen(view)), plan)
    : plan;
}

/** The view that an action is planned of, and that it is shown beside. */
export function disksOf(view: View, action: Action): View {
  const disks = withoutLeftOpen(view);
  return 'image' in action && !imageOf(disks, action.image) ? view : disks;
}

/**
 * What must still be so when a plan is done that somebody was told: what is sent, what is spoilt, and the disks that the
 * action is about. What guests write meanwhile changes none of it.
 */
export function gistOf(view: View, { action, commands, invalid, words, after }: Plan): string {
  const chainsOf = ({ chains }: View): Array<readonly string[]> =>
    'image' in action ? chains.flatMap(({ images }) => (images.includes(action.image) ? [images] : [])) : [];
  // Words of a job tell how it ends, and no amounts.
  const told = action.kind === 'job' ? words : [];
  return JSON.stringify([commands, invalid, told, chainsOf(view), chainsOf(after)]);
}

function planOn(view: View, action: Action): Plan {
  switch (action.kind) {
    case 'snapshot':
      return planSnapshot(view, action);
    case 'stream':
      return planStream(view, action);
    case 'commit':
      return planCommit(view, action);
    case 'delete':
      return planDelete(view, action);
    case 'mirror':
      return planMirror(view, action);
    case 'backup':
      return planBackup(view, action);
    case 'resize':
      return planResize(view, action);
    case 'export':
      return planExport(view, action);
    case 'unexport':
      return planUnexport(view, action);
    case 'percentiles':
      return planPercentiles(view, action);
    case 'job':
      return planJobVerb(view, action);
    default:
      return unreachable(action);
  }
}
