import { BlockError } from '../base/error.js';

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

/** Of a node's options. */
interface ModeOptions {
  readonly discard?: DiscardMode | undefined;
  readonly 'detect-zeroes'?: DetectZeroesMode | undefined;
}

/**
 * A node's modes by its options. What does not say what becomes of discards ignores them, unless `discard` says else:
 * children do as they are told by their parents, and command lines have defaults of their own.
 * Errors: kind invalid, in QEMU's words.
 */
export function nodeModes(options: ModeOptions, discard: DiscardMode = 'ignore'): NodeModes {
  const modes: NodeModes = {
    discard: options.discard ?? discard,
    detectZeroes: options['detect-zeroes'] ?? 'off',
  };
  if (modes.detectZeroes === 'unmap' && modes.discard === 'ignore') {
    const text = 'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap';
    throw new BlockError('invalid', text);
  }
  return modes;
}
