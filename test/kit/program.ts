import assert from 'node:assert/strict';
import { type ChildProcess, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { TestContext } from 'node:test';

/** The project's folder, where the program must be started for tsx to be found. */
export const PROJECT = resolve(import.meta.dirname, '../..');

/** Where all sources have been compiled already, and the program is beside them in few files. */
const COMPILED = process.env['LIVEDISK_COMPILED'];

/** What Node.js is to run for `livedisk ARGS`, from its sources. */
export function livediskWords(...args: string[]): string[] {
  if (COMPILED !== undefined) return [join(COMPILED, 'program/main.js'), ...args];
  return sourceWords('src/programs/main.ts', ...args);
}

/** What Node.js is to run for a source of the project, a path in it. */
export function sourceWords(source: string, ...args: string[]): string[] {
  if (COMPILED !== undefined) return [join(COMPILED, source.replace(/ts$/, 'js')), ...args];
  return ['--import', 'tsx', join(PROJECT, source), ...args];
}

/** What `livedisk ARGS` prints; it must end with status 0. */
export function livedisk(...args: string[]): string {
  const { status, stdout, stderr } = runLivedisk(...args);
  assert.equal(status, 0, stdout + stderr);
  return stdout;
}

export function runLivedisk(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, livediskWords(...args), { cwd: PROJECT, encoding: 'utf8' });
}

/** A folder that goes when the test ends. */
export function scratch(context: TestContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-program-'));
  context.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** The exit status, once all output has been delivered. */
export function closed(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve) => child.once('close', resolve));
}
