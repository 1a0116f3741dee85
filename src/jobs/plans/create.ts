import { BlockError } from '../../base/error.js';
import type { CommandArguments } from '../../schema/commands.js';

/** blockdev-create; options as in QMP. */
export interface CreatePlan {
  kind: 'create';
  jobId: string;
  options: CommandArguments<'blockdev-create'>['options'];
}

/** Errors: unsupported. */
export function planCreate(request: CommandArguments<'blockdev-create'>): CreatePlan {
  const { options, 'job-id': jobId } = request;
  const driver: string = options.driver;
  if (driver !== 'file' && driver !== 'qcow2')
    throw new BlockError('unsupported', 'Driver does not support blockdev-create');
  return { kind: 'create', jobId, options };
}
