import type { JsonObject } from '../schema/types.js';
import { type Answers, numberOf, objectOf, objectsOf, textOf } from './answers.js';
import { byId, type Image, type Job, type JobStage, pastFilters } from './model.js';
import type { GraphParent, NodeGraph } from './nodes.js';

const AT_WORK = ['created', 'running', 'paused', 'ready', 'standby'];

/** In these a job that had nothing to do has done all of it. */
const COPIED = ['ready', 'standby', 'waiting', 'pending', 'concluded'];

/** What each state takes that a person may want of it; QEMU's table. */
const VERBS: ReadonlyArray<readonly [verb: string, states: readonly string[]]> = [
  ['pause', ['created', 'running', 'ready']],
  ['resume', ['paused', 'standby']],
  ['set-speed', AT_WORK],
  ['complete', ['ready']],
  ['cancel', [...AT_WORK, 'waiting', 'pending']],
  ['finalize', ['pending']],
  ['dismiss', ['concluded']],
];

const PHASES: Readonly<Record<string, string>> = {
  created: 'starting',
  running: 'copying',
  paused: 'paused',
  ready: 'ready: copies what the guest writes',
  standby: 'paused, ready',
  waiting: 'waits for its transaction',
  pending: 'done, waits to be finalized',
  aborting: 'ending with an error',
  concluded: 'over',
};

/** Jobs as query-jobs and query-block-jobs tell them, with what flows where as the graph tells it. */
export function readJobs(answers: Answers, graph: NodeGraph, images: readonly Image[]): Job[] {
  const blockJobs = new Map(objectsOf(answers['query-block-jobs']).map((info) => [info['device'], info]));
  return objectsOf(answers['query-jobs']).map((info) => {
    const block = blockJobs.get(info['id'] ?? '');
    const id = textOf(info['id']) ?? '';
    const type = textOf(info['type']) ?? '';
    const held = graph.parents.filter((parent) => parent.type === 'block-job' && parent.name === id);
    return { ...jobOf(id, type, info, block), ...flowOf(type, held, images) };
  });
}

function jobOf(
  id: string,
  type: string,
  info: JsonObject,
  block: JsonObject | undefined,
): Omit<Job, 'from' | 'to'> {
  const status = textOf(info['status']) ?? '';
  const done = numberOf(info['current-progress']) ?? 0;
  const total = numberOf(info['total-progress']) ?? 0;
  const error = textOf(info['error']) ?? textOf(block?.['error']);
  const ioStatus = textOf(block?.['io-status']);
  return {
    id,
    type,
    status,
    phase: PHASES[status] ?? status,
    done,
    total,
    ...ownProgress(info, percentOf({ done, total, status, isFailed: error !== undefined })),
    speedLimit: numberOf(block?.['speed']) ?? 0,
    ...(error !== undefined && { error }),
    ...(ioStatus !== undefined && { ioStatus }),
    verbs: VERBS.filter(([, states]) => states.includes(status)).map(([verb]) => verb),
    isBlockJob: block !== undefined,
  };
}

interface Progress {
  done: number;
  total: number;
  status: string;
  isFailed: boolean;
}

function percentOf({ done, total, status, isFailed }: Progress): number {
  if (total > 0) return Math.floor((100 * done) / total);
  return COPIED.includes(status) && !isFailed ? 100 : 0;
}

/** livedisk tells these itself; of QEMU's jobs, rates are what is seen from one look to the next (rates.ts). */
function ownProgress(
  info: JsonObject,
  percent: number,
): Pick<Job, 'percent' | 'rate' | 'secondsLeft' | 'outlook' | 'dirtyRate' | 'stage' | 'stages'> {
  const own = objectOf(info['x-progress']);
  const [rate, secondsLeft] = [numberOf(own['rate']), numberOf(own['time-left'])];
  const dirtyRate = numberOf(own['dirty-rate']);
  const stages = objectsOf(own['phases'])
    .map(toStage)
    .filter(({ done, left }) => done + left > 0);
  const stage = textOf(own['phase']);
  const outlook = textOf(own['outlook']);
  return {
    // Of a server that says otherwise, too.
    percent: Math.min(100, Math.max(0, numberOf(own['percent']) ?? percent)),
    ...(rate !== undefined && { rate }),
    ...(secondsLeft !== undefined && { secondsLeft }),
    ...(outlook !== undefined && { outlook }),
    ...(dirtyRate !== undefined && { dirtyRate }),
    ...(stage !== undefined && { stage }),
    ...(stages.length > 0 && { stages }),
  };
}

function toStage(info: JsonObject): JobStage {
  return {
    phase: textOf(info['phase']) ?? '',
    done: numberOf(info['done']) ?? 0,
    left: numberOf(info['left']) ?? 0,
  };
}

/** Which images flow into which. What a job holds has roles that tell it; a filter stands for what it shows. */
function flowOf(
  type: string,
  held: readonly GraphParent[],
  images: readonly Image[],
): Pick<Job, 'from' | 'to'> {
  const isShown = (id: string): boolean => (byId(images).get(id)?.kind ?? 'filter') !== 'filter';
  const inRole = (...roles: string[]): string[] =>
    held
      .filter(({ role }) => roles.includes(role))
      .flatMap(({ child }) => [...pastFilters(child, byId(images))].filter(isShown));
  const [main] = inRole('main node');
  const between = inRole('intermediate node');
  const [to] = type === 'stream' ? [...inRole('active node'), main] : inRole('target', 'base');
  const source = type === 'stream' ? [] : inRole('source');
  const from = [...new Set([...source, ...between])].filter((id) => id !== to);
  if (from.length === 0 && main !== undefined && main !== to) from.push(main);
  return { from, ...(to !== undefined && { to }) };
}
