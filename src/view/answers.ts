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

/** What a server answered, by command; a query that it does not have is missing. */
export type Answers = Readonly<Record<string, JsonValue>>;

/** Runs a command; a rejection whose error says `errorClass` CommandNotFound means that the server lacks it. */
export type Execute = (command: string, args?: JsonObject) => Promise<JsonValue>;

/** Asks all of QUERIES at once. Errors: those of `execute`, but for commands that the server lacks. */
export async function readAnswers(execute: Execute): Promise<Answers> {
  const asked = QUERIES.map(
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
