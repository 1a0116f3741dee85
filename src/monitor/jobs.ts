import { BlockError } from '../base/error.js';
import type { Job } from '../jobs/job.js';
import { Waiting } from '../wire/qmp/registry.js';
import type { Parts } from './parts.js';

/** The verbs of jobs, in their older (block-job-*) and newer (job-*) forms. */
export function registerJobs(engine: Parts<'command' | 'jobs'>): void {
  registerBlockJobVerbs(engine);
  registerJobVerbs(engine);
}

function registerBlockJobVerbs(engine: Parts<'command' | 'jobs'>): void {
  const find = (id: string): Job => {
    const job = engine.jobs.find(id);
    if (job?.isBlockJob === true) return job;
    throw new BlockError('device-not-active', `Block job '${id}' not found`);
  };
  engine.command(
    'block-job-cancel',
    ({ device, force }) => new Waiting(find(device).cancel({ force: force ?? false, softOnReady: true })),
  );
  engine.command('block-job-pause', ({ device }) => find(device).pause());
  engine.command('block-job-resume', ({ device }) => find(device).resume());
  engine.command('block-job-complete', ({ device }) => find(device).complete());
  engine.command('block-job-set-speed', ({ device, speed }) => {
    const kept = find(device).setSpeed(speed);
    return kept && new Waiting(kept);
  });
  engine.command('block-job-change', (args) => {
    find(args.id).change(args.type === 'mirror' ? args['copy-mode'] : 'background');
  });
  engine.command('block-job-finalize', ({ id }) => find(id).finalize());
  engine.command('block-job-dismiss', ({ id }) => find(id).dismiss());
}

function registerJobVerbs(engine: Parts<'command' | 'jobs'>): void {
  const find = (id: string): Job => {
    const job = engine.jobs.find(id);
    if (job) return job;
    throw new BlockError('not-found', 'Job not found');
  };
  engine.command('job-cancel', ({ id }) => find(id).cancel({ force: true, softOnReady: false }));
  engine.command('job-pause', ({ id }) => find(id).pause());
  engine.command('job-resume', ({ id }) => find(id).resume());
  engine.command('job-complete', ({ id }) => find(id).complete());
  engine.command('job-finalize', ({ id }) => find(id).finalize());
  engine.command('job-dismiss', ({ id }) => find(id).dismiss());
}
