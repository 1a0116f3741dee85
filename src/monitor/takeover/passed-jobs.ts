import type { BlockBackend } from '../../block/backend.js';
import { Node } from '../../block/node.js';
import type { JobGroup } from '../../jobs/job-group.js';
import type { Job } from '../../jobs/job.js';
import {
  type EndedJob,
  type PassedJob,
  planOfText,
  planText,
  speedOfText,
} from '../../jobs/passed/passed-job.js';
import type { Engine } from '../engine.js';
import type { Bundle } from './bundle.js';
import { takeBytes } from './bytes.js';
import { backendsOf, bytesState, type Given } from './live.js';
import type { PassedJobState } from './messages.js';

/** Nodes that jobs use, some of which nobody else may. */
export function nodesOfJobs({ jobs }: Pick<Given, 'jobs'>): Node[] {
  return jobs.list().flatMap(({ isOver, place }) => (isOver ? [] : (place?.nodes ?? [])));
}

/** Jobs without journals, and those that are over; they are at rest, and guests do nothing. Errors: busy. */
export function describeJobs(engine: Given, bundle: Bundle): Array<PassedJobState | EndedJob> {
  const groups: JobGroup[] = [];
  const states: Array<PassedJobState | EndedJob> = [];
  for (const job of engine.jobs.list().reverse()) {
    if (job.isOver) states.push(job.ended());
    else if (!job.kept) states.push(describeJob(engine, bundle, job, groups));
  }
  return states;
}

function describeJob(engine: Given, bundle: Bundle, job: Job, groups: JobGroup[]): PassedJobState {
  const { plan, speed, work, isPast: _, ...passed } = job.passed(groups);
  return {
    ...passed,
    plan: planText(plan),
    speed: String(speed),
    work: {
      data: work.data,
      parts: mapped(work.parts, (bytes) => bytesState(engine.host, `job ${job.id}`, bytes, bundle)),
      files: bundle.addAll(work.files ?? []),
    },
    past: pastOf(engine, job),
  };
}

function pastOf(engine: Given, { place }: Job): PassedJobState['past'] {
  const parents = new Set((place?.pastUsers ?? []).map(({ parent }) => parent));
  return {
    nodes: [...parents].flatMap((parent) => (parent instanceof Node ? [parent.name] : [])),
    backends: backendsOf(engine).flatMap(({ kind, name, backend }) =>
      parents.has(backend) ? [{ kind, name }] : [],
    ),
  };
}

/** Puts them into their places; nothing is written, and none goes on yet. Errors: as of starting one. */
export async function adoptPassedJobs(
  engine: Engine,
  states: ReadonlyArray<PassedJobState | EndedJob>,
  fds: readonly number[],
): Promise<void> {
  const backends = backendsOf(engine);
  const jobs = states.map((state): PassedJob | EndedJob => {
    if (!('plan' in state)) return state;
    const { plan, speed, work, past, ...passed } = state;
    const nodes = new Set(past.nodes);
    const isPast = (backend: BlockBackend): boolean =>
      backends.some(
        (one) =>
          one.backend === backend &&
          past.backends.some(({ kind, name }) => kind === one.kind && name === one.name),
      );
    return {
      ...passed,
      plan: planOfText(plan),
      speed: speedOfText(speed),
      work: {
        data: work.data,
        parts: mapped(work.parts, (part) => takeBytes(engine.host, part, fds)),
        files: work.files.map((place) => fds[place] ?? -1),
      },
      isPast: ({ parent }) => (parent instanceof Node ? nodes.has(parent.name) : isPast(parent)),
    };
  });
  await engine.jobs.restorePassed(jobs);
}

function mapped<From, To>(
  parts: { readonly [what: string]: readonly From[] },
  map: (one: From) => To,
): { [what: string]: To[] } {
  return Object.fromEntries(Object.entries(parts).map(([what, all]) => [what, all.map(map)]));
}

/** As the other process has its nodes. */
export function orderNodes({ graph }: Pick<Engine, 'graph'>, names: readonly string[]): void {
  for (const name of names) {
    const node = graph.nodes.get(name);
    if (!node) continue;
    graph.nodes.delete(name);
    graph.nodes.set(name, node);
  }
}
