import { BlockError } from '../base/error.js';
import { isJsonObject, type JsonObject, type JsonValue } from '../schema/types.js';

/** A query that pictures are made of. */
export interface Query {
  command: string;
  args: JsonObject;
}

const query = (command: string, args: JsonObject = {}): Query => ({ command, args });

/** All that is asked of a server for one picture; a storage daemon has no query-status. */
export const QUERIES: readonly Query[] = [
  query('query-version'),
  query('query-status'),
  query('query-block'),
  query('query-named-block-nodes', { flat: true }),
  query('x-debug-query-block-graph'),
  query('query-block-exports'),
  query('query-jobs'),
  query('query-block-jobs'),
  query('query-blockstats'),
];
/** What only livedisk answers. */
const OWN_QUERIES: readonly Query[] = [query('x-query-export-stats')];

/** What a server answered, by command; a query that it does not have is missing. */
export type Answers = Readonly<Record<string, JsonValue>>;

/** Runs a command; a rejection whose error says `errorClass` CommandNotFound means that the server lacks it. */
export type Execute = (command: string, args?: JsonObject) => Promise<JsonValue>;

/** What a stream job is that has ended and is not gone. */
const ENDING = ['waiting', 'pending', 'aborting', 'concluded'];
/** Those that QEMU must not be asked while one is. */
const OF_NODES = ['query-named-block-nodes', 'x-debug-query-block-graph'];
const FIRST = ['query-version', 'query-jobs'];
const TRIES = 20;

/** How a look goes round the end of a stream. */
export interface LookOptions {
  /** Of the last look at that server: nodes are told as they were then, rather than that somebody waits. */
  readonly last?: Answers | undefined;
  /** Between two tries. */
  readonly pause?: () => Promise<void>;
}

/**
 * Asks all of QUERIES. A QEMU (7.2 and 10.0 do) crashes when it is asked for its nodes while a stream job that does not
 * dismiss itself is over and still there, since the job's filter has lost its child: so it is not. Errors: those of
 * `execute`, but for commands that the server lacks; busy when such a job stays.
 */
export async function readAnswers(execute: Execute, options: LookOptions = {}): Promise<Answers> {
  const { last, pause = shortPause } = options;
  for (let tries = 1; ; tries++) {
    const first = await askAll(
      execute,
      QUERIES.filter(({ command }) => FIRST.includes(command)),
    );
    const own = isLivedisk(first) ? OWN_QUERIES : [];
    const others = [...QUERIES.filter(({ command }) => !FIRST.includes(command)), ...own];
    if (!isStreamEnding(first)) return { ...first, ...(await askAll(execute, others)) };
    if (last) {
      const safe = others.filter(({ command }) => !OF_NODES.includes(command));
      return { ...last, ...first, ...(await askAll(execute, safe)) };
    }
    if (tries === TRIES)
      throw new BlockError('busy', 'a stream job has ended and is not dismissed', {
        hint: 'QEMU would crash if it were asked for its nodes now: dismiss the job (job-dismiss).',
      });
    await pause();
  }
}

function shortPause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 50));
}

/** Whether query-version and query-jobs tell of a QEMU that must not be asked for its nodes: see readAnswers. */
export function isStreamEnding(answers: Answers): boolean {
  return (
    !isLivedisk(answers) &&
    objectsOf(answers['query-jobs']).some(
      ({ type, status }) => type === 'stream' && ENDING.includes(textOf(status) ?? ''),
    )
  );
}

export function isLivedisk(answers: Answers): boolean {
  return (textOf(objectOf(answers['query-version'])['package']) ?? '').startsWith('livedisk');
}

async function askAll(execute: Execute, queries: readonly Query[]): Promise<Answers> {
  const asked = queries.map(
    async ({ command, args }) => [command, await orMissing(execute(command, args))] as const,
  );
  const told: Record<string, JsonValue> = {};
  for (const [command, answer] of await Promise.all(asked)) if (answer !== undefined) told[command] = answer;
  return told;
}

async function orMissing(answer: Promise<JsonValue>): Promise<JsonValue | undefined> {
  try {
    return await answer;
  } catch (error) {
    if ((error as { errorClass?: unknown }).errorClass === 'CommandNotFound') return undefined;
    throw error;
  }
}

/** The objects of an answer that is a list; none of one that is missing. */
export function objectsOf(value: JsonValue | undefined): JsonObject[] {
  return Array.isArray(value) ? value.filter(isJsonObject) : [];
}

export function objectOf(value: JsonValue | undefined): JsonObject {
  return value !== undefined && isJsonObject(value) ? value : {};
}

export function textOf(value: JsonValue | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

export function numberOf(value: JsonValue | undefined): number | undefined {
  if (typeof value === 'bigint') return Number(value);
  return typeof value === 'number' && Number.isFinite(value) ? value : undefined;
}
