import type { Host, HostFile } from '../../src/host/host.js';
import type { Job } from '../../src/jobs/job.js';
import type { JobManager } from '../../src/jobs/manager.js';
import { type PassedWork, planOfText, planText } from '../../src/jobs/passed/passed-job.js';
import { assert } from '../../src/base/assert.js';
import { withMethods } from './lying-host.js';

const BUFFER_NAME = '.livedisk-fleecing';
const PATIENCE_MS = 60_000;

/** A job that goes on anew: what was said of it, and how it is told on. */
export interface HandedOn {
  readonly job: Job;
  readonly work: PassedWork;
}

/**
 * A job comes to rest, ends, and goes on from what another process would be told of it: in the same engine, whose guests
 * are still meanwhile.
 */
export async function handOn(jobs: JobManager, id: string): Promise<HandedOn> {
  const goOn = await jobs.rest(PATIENCE_MS);
  const old = jobs.find(id);
  assert(old, 'a job that is there');
  const { plan, work, ...told } = old.passed([]);
  const parts = Object.entries(work.parts).map(([what, all]) => [
    what,
    all.map((one) => new Uint8Array(one)),
  ]);
  const { data, ...rest } = {
    ...(JSON.parse(JSON.stringify({ ...told, data: work.data })) as typeof told & Pick<PassedWork, 'data'>),
  };
  const passed = {
    ...{ ...rest, speed: told.speed, plan: planOfText(planText(plan)) },
    work: { data, parts: Object.fromEntries(parts) as PassedWork['parts'], files: [...(work.files ?? [])] },
  };
  await old.cancelNow();
  goOn();
  if (jobs.find(id)) old.dismiss();
  await jobs.restorePassed([passed]);
  jobs.goOn();
  const job = jobs.find(id);
  assert(job, 'a job that goes on');
  return { job, work: passed.work };
}

/** A host whose buffers' files have descriptors: to open one of them goes on with the file, though it was closed. */
export function withDescriptors(host: Host): Host {
  const files: HostFile[] = [];
  const open: Host['files']['open'] = async (path, options) => {
    const { descriptor, ...usual } = options;
    if (!path.includes(BUFFER_NAME)) return host.files.open(path, options);
    const file = descriptor === undefined ? await host.files.open(path, usual) : files[descriptor];
    assert(file, 'a descriptor of this host');
    if (!files.includes(file)) files.push(file);
    return withMethods(file, { descriptor: files.indexOf(file), close: () => Promise.resolve() });
  };
  return { ...host, files: withMethods(host.files, { open }) };
}
