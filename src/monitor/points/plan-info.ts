import type { CommandResult } from '../../schema/commands.js';
import { copySeconds } from '../../view/plan/expected.js';

export type PlanInfo = CommandResult<'x-point-create'>['plan'];

interface Parts {
  words: readonly string[];
  bytesAtMost: number;
  ends?: readonly string[];
  invalid?: readonly string[];
  users?: readonly string[];
}

export function planInfo({ words, bytesAtMost, ends = [], invalid = [], users = [] }: Parts): PlanInfo {
  return {
    ...{ words: [...words], bytes: bytesAtMost, seconds: copySeconds(bytesAtMost) },
    ...{ ends: [...ends], invalid: [...invalid], users: [...users] },
  };
}
