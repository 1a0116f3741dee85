import { closeSync, ftruncateSync, openSync } from 'node:fs';
import { join } from 'node:path';

/** What a program printed, and its exit status. */
export interface ToolAnswer {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a program's main function with outputs that are kept. */
export async function toolAnswer(
  run: (out: { print: (text: string) => void; error: (text: string) => void }) => Promise<number>,
): Promise<ToolAnswer> {
  const answer: ToolAnswer = { code: null, stdout: '', stderr: '' };
  answer.code = await run({
    print: (text) => void (answer.stdout += text),
    error: (text) => void (answer.stderr += text),
  });
  return answer;
}

/** Makes an empty raw image; answers its path. */
export function imageOf(folder: string, name: string, sizeBytes: number): string {
  const path = join(folder, name);
  const fd = openSync(path, 'w');
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  return path;
}
