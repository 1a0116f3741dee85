import { BlockError } from '../base/error.js';
import type { NodeOptions } from './driver.js';
import { stringOption } from './options.js';

/** Whether discards, and zeroing that may unmap, reach a node's storage. */
export type DiscardMode = 'ignore' | 'unmap';
/** Whether writes of zeroes become requests to zero: never, or so, or so that the space may go. */
export type DetectZeroesMode = 'off' | 'on' | 'unmap';

/** What an open node promises of requests that free space. Each node has its own; only `discard` has a default. */
export interface NodeModes {
  readonly discard: DiscardMode;
  readonly detectZeroes: DetectZeroesMode;
}

/** Of a node that leaves it to those below. */
export const PASSING_MODES: NodeModes = { discard: 'unmap', detectZeroes: 'off' };

/**
 * A node's modes by its options. What does not say what becomes of discards ignores them, unless `discard` says else:
 * children do as they are told by their parents, and command lines have defaults of their own.
 * Errors: kind invalid, in QEMU's words.
 */
export function nodeModes(options: NodeOptions, discard: DiscardMode = 'ignore'): NodeModes {
  const modes: NodeModes = {
    discard: parseDiscard(stringOption(options, 'discard')) ?? discard,
    detectZeroes: (stringOption(options, 'detect-zeroes') ?? 'off') as DetectZeroesMode,
  };
  if (modes.detectZeroes === 'unmap' && modes.discard === 'ignore') {
    const text = 'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap';
    throw new BlockError('invalid', text);
  }
  return modes;
}

/** As command lines and `json:` names spell it too. */
function parseDiscard(value: string | undefined): DiscardMode | undefined {
  if (value === undefined) return undefined;
  if (value === 'ignore' || value === 'off') return 'ignore';
  if (value === 'unmap' || value === 'on') return 'unmap';
  throw new BlockError('invalid', 'Invalid discard option');
}
