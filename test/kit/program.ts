import assert from 'node:assert/strict';
import { type ChildProcess, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { TestContext } from 'node:test';

/** The project's folder, where the program must be started for tsx to be found. */
export const PROJECT = resolve(import.meta.dirname, '../..');

/** What Node.js is to run for `livedisk ARGS`, from its sources, compiled already where all of the tests are. */
export function livediskWords(...args: string[]): string[] {
  const compiled = process.env['LIVEDISK_COMPILED'];
  if (compiled !== undefined) return [join(compiled, 'src/programs/main.js'), ...args];
  return ['--import', 'tsx', join(PROJECT, 'src/programs/main.ts'), ...args];
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
