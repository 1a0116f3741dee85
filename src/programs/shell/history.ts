import { appendFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Lines that can be called back, and how many more the file may have before it is cut. */
export const HISTORY_LINES = 1000;
const MOST_LINES = 2 * HISTORY_LINES;

/** $LIVEDISK_HISTORY (none where it is empty), else a file in the user's home. */
export function historyFile(): string | undefined {
  const named = process.env['LIVEDISK_HISTORY'];
  return named === undefined ? join(homedir(), '.livedisk_history') : named || undefined;
}

/**
 * Lines of earlier shells, in a file that only the user reads. A line that begins with a space is not kept: it may have a
 * secret. A file that cannot be read or written is no history, and no error.
 */
export class History {
  readonly #path: string | undefined;
  /** The newest first, as readline wants them. */
  readonly lines: readonly string[];

  constructor(path: string | undefined) {
    this.#path = path;
    const all = path === undefined ? [] : readLines(path);
    this.lines = all.slice(-HISTORY_LINES).reverse();
    if (path !== undefined && all.length > MOST_LINES) this.#cut(path);
  }

  add(line: string): void {
    const path = this.#path;
    if (path === undefined || line.trim() === '' || line.startsWith(' ')) return;
    ignoringFailure(() => appendFileSync(path, `${line}\n`, { mode: 0o600 }));
  }

  #cut(path: string): void {
    const text = [...this.lines].reverse().map((line) => `${line}\n`);
    ignoringFailure(() => {
      writeFileSync(`${path}.new`, text.join(''), { mode: 0o600 });
      renameSync(`${path}.new`, path);
    });
  }
}

function readLines(path: string): string[] {
  return (
    ignoringFailure(() =>
      readFileSync(path, 'utf8')
        .split('\n')
        .filter((line) => line !== ''),
    ) ?? []
  );
}

function ignoringFailure<T>(body: () => T): T | undefined {
  try {
    return body();
  } catch {
    return undefined;
  }
}
