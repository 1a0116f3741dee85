import { unreachable } from '../../base/assert.js';
import type { View } from '../model.js';
import { planBackup, planJobVerb, planMirror, planResize } from './copies.js';
import { planExport, planUnexport } from './exports.js';
import { planCommit, planSnapshot, planStream } from './layers.js';
import { planPercentiles } from './percentiles.js';
import { planDelete } from './points.js';
import type { Action, Plan } from './types.js';

/** What an action does, before it is done. Errors: invalid, saying why it cannot be. */
export function planAction(view: View, action: Action): Plan {
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
