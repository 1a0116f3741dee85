import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { JsonValue } from '../../src/schema/types.js';
import type { Answers } from '../../src/view/answers.js';
import { buildView } from '../../src/view/build.js';
import type { View } from '../../src/view/model.js';

const FOLDER = join(import.meta.dirname, 'answers');

/** Names of what record.ts wrote: `SERVER-SITUATION`. */
export const RECORDINGS = readdirSync(FOLDER).map((name) => name.replace(/\.json$/, ''));

export function recorded(name: string): Answers {
  return JSON.parse(readFileSync(join(FOLDER, `${name}.json`), 'utf8')) as Answers;
}

export function recordedView(name: string): View {
  return buildView(recorded(name));
}

/** Which of those servers have a recording of a situation. */
export function serversWith(situation: string): string[] {
  return RECORDINGS.filter((name) => name.endsWith(`-${situation}`))
    .map((name) => name.slice(0, -situation.length - 1))
    .filter((server) => ['qemu', 'storage-daemon', 'livedisk'].includes(server));
}

/** What nobody sees, what turns the direction of writing, and what moves a cursor but to the next line. */
export const UNSEEN = /[^\n\P{Cc}]|[\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/u;

/** An escape, controls beyond ASCII, what turns and joins, letters without a shape, half a character. */
export const MOVERS = [
  ...[
    '\u001b[2J',
    '\u009b2J',
    '\u007f',
    '\u202e',
    '\u2066',
    '\u200b',
    '\u200d',
    '\u00ad',
    '\u2028',
    '\u3164',
  ],
  ...['\ufe0f', '\udc00'],
];

/** Words without which there is nothing to be seen. */
const WORDS =
  /^(?:block-driver|block-backend|block-job|backing|file|root|main node|target|source|write|running|livedisk.*|query-\S*|x-\S*)$/;

/** The answers with `mover` at the end of every text, also where a server has no choice of words. */
export function withMover<T extends JsonValue>(answers: T, mover: string): T {
  const walk = (value: JsonValue): JsonValue => {
    if (typeof value === 'string') return WORDS.test(value) ? value : `${value}${mover}`;
    if (Array.isArray(value)) return value.map(walk);
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, walk(one)]));
  };
  return walk(answers) as T;
}
