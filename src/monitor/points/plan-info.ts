import { MiB } from '../../base/limits.js';
import type { CommandResult } from '../../schema/commands.js';

export type PlanInfo = CommandResult<'x-point-create'>['plan'];

/** What a copy is guessed to move. */
const BYTES_PER_SECOND = 200 * MiB;

interface Parts {
  words: readonly string[];
  bytesAtMost: number;
  ends?: readonly string[];
  invalid?: readonly string[];
  users?: readonly string[];
}

export function planInfo({ words, bytesAtMost, ends = [], invalid = [], users = [] }: Parts): PlanInfo {
  return {
    ...{ words: [...words], bytes: bytesAtMost, seconds: Math.ceil(bytesAtMost / BYTES_PER_SECOND) },
    ...{ ends: [...ends], invalid: [...invalid], users: [...users] },
  };
}
