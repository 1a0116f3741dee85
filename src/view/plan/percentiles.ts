import { USUAL_BOUNDARIES_NS } from '../histogram.js';
import type { View } from '../model.js';
import { userText } from '../words.js';
import { refuse } from './checks.js';
import type { Action, Plan } from './types.js';

/** Servers count how long requests take, in buckets, or count no more. */
export function planPercentiles(view: View, action: Extract<Action, { kind: 'percentiles' }>): Plan {
  const devices = view.users.flatMap((user) =>
    user.qdev !== undefined && user.imageId !== undefined ? [{ user, id: user.qdev }] : [],
  );
  if (devices.length === 0) refuse('there is no device: exports are not counted');
  const names = devices.map(({ user }) => userText(user)).join(', ');
  const boundaries = action.isOn ? { boundaries: [...USUAL_BOUNDARIES_NS] } : {};
  return {
    action,
    words: action.isOn
      ? [
          `From now on the requests of ${names} are counted by how long they take, in ${USUAL_BOUNDARIES_NS.length + 1} buckets from 10 µs to 10 s.`,
          'Percentiles are those of buckets: what is told is the upper end of the bucket, so the true one is no more.',
          'Counts by other buckets, which somebody else may have asked for, are dropped.',
        ]
      : [`Nobody counts any more how long the requests of ${names} take; counts until now are dropped.`],
    commands: devices.map(({ id }) => ({
      execute: 'block-latency-histogram-set',
      arguments: { id, ...boundaries },
    })),
    bytesAtMost: 0,
    invalid: [],
    after: view,
    takenBackBy: { kind: 'percentiles', isOn: !action.isOn },
  };
}
