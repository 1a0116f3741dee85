import { BlockError } from '../../base/error.js';

/**
 * How far a move has come, as far as its end is concerned. `released`: the images are nobody's, and come back when
 * anything fails. `said`: the word has been said by which the destination has the machine, who may not have heard it.
 */
export type Phase = 'running' | 'stopped' | 'released' | 'said' | 'moved';

/** Who has the machine, as its source knows. */
export const OWNERS = {
  running: 'here',
  stopped: 'here',
  released: 'here',
  said: 'unknown',
  moved: 'there',
} as const satisfies Record<Phase, string>;

/** Errors: kind busy while the images are, or may be, another machine's. */
export function assertOwner(phase: Phase): void {
  if (phase === 'moved') throw new BlockError('busy', 'The machine has moved: the destination has it');
  if (phase === 'said')
    throw new BlockError('busy', 'Nobody knows yet whether the destination has the machine', {
      hint: 'x-query-move says why; x-move-claim decides by hand.',
    });
  if (phase === 'released') throw new BlockError('busy', 'Migration is not finalized yet');
}
