import type { Daemon } from './daemon.js';

type Json = { [key: string]: unknown };

/** What counts, measures, or is numbered anew by each process. */
const VOLATILE = new Set(
  (
    'actual-size count thread-id timestamp x-progress offset len current-progress total-progress busy status ready ' +
    'paused io-status x-latency id parent child stats guest-time x-ahead mount-time'
  ).split(' '),
);

/** Those whose answers are of the process or of what it did: numbers of memory, processors, times. */
const OF_THE_PROCESS = new Set(['query-qmp-schema', 'query-commands', 'x-query-jit', 'x-query-profile']);

/**
 * What every query that needs no arguments answers, and the properties of all objects and devices; without what counts,
 * measures or is numbered anew. Two daemons of which all of it is alike are the same to their users.
 */
export async function allAnswers(daemon: Daemon): Promise<{ [query: string]: unknown }> {
  const names = ((await daemon.execute('query-commands')) as Array<{ name: string }>)
    .map(({ name }) => name)
    .filter((name) => /^(x-)?(debug-)?query-/.test(name) || name === 'x-debug-query-block-graph')
    .filter((name) => !OF_THE_PROCESS.has(name))
    .sort();
  const all: { [query: string]: unknown } = {};
  for (const name of names) {
    const { return: value, error } = await daemon.raw(name);
    all[name] = error ? error.desc : lasting(name, value);
  }
  for (const folder of ['/objects', '/machine/peripheral', '/machine/peripheral-anon'])
    for (const { name } of await list(daemon, folder))
      for (const property of await list(daemon, `${folder}/${name}`)) {
        const asked = { path: `${folder}/${name}`, property: property.name };
        all[`${folder}/${name}.${property.name}`] = (await daemon.raw('qom-get', asked)).return;
      }
  return withoutFilterNames(all);
}

async function list(daemon: Daemon, path: string): Promise<Array<{ name: string }>> {
  const { return: found } = await daemon.raw('qom-list', { path });
  return ((found ?? []) as Array<{ name: string; type: string }>).filter(({ name }) => name !== 'type');
}

/** The status of the machine and the names of exports are no counts. */
function lasting(query: string, value: unknown): unknown {
  const isKept = (key: string): boolean =>
    (key === 'status' && query === 'query-status') || (key === 'id' && !/graph/.test(query));
  const text = JSON.stringify(value ?? null, (key, member: unknown) => {
    if (VOLATILE.has(key) && !isKept(key)) return undefined;
    return isJson(member) ? withoutGrowth(member) : member;
  });
  return JSON.parse(text) as Json;
}

/** Images grow in their files. */
function withoutGrowth(member: Json): Json {
  return member['format'] === 'file' ? { ...member, 'virtual-size': 0 } : member;
}

/** A job's filter that nobody has named is another one after each start. */
function withoutFilterNames(all: { [query: string]: unknown }): { [query: string]: unknown } {
  const nodes = all['query-named-block-nodes'] as Array<{ drv: string; 'node-name': string }>;
  let text = JSON.stringify(all);
  for (const { drv, 'node-name': name } of nodes)
    if (JOB_FILTERS.has(drv) && name.startsWith('#')) text = text.replaceAll(`"${name}"`, `"#${drv}"`);
  return JSON.parse(text, (_, member: unknown) =>
    isList(member) ? member.sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1)) : member,
  ) as Json;
}

/** Filters of jobs that go on are newer than what was there: the order of nodes is another. */
function keyOf(member: Json): string {
  return `${JSON.stringify(member['node-name'] ?? '')} ${JSON.stringify(member)}`;
}

function isList(member: unknown): member is Json[] {
  return Array.isArray(member) && member.every(isJson);
}

const JOB_FILTERS = new Set<unknown>(['mirror_top', 'commit_top', 'copy-before-write', 'copy-on-read']);

function isJson(member: unknown): member is Json {
  return typeof member === 'object' && member !== null && !Array.isArray(member);
}
