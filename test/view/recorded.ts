import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
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
