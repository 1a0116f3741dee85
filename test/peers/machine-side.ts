import { spawn, spawnSync } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { JsonObject, JsonValue } from '../../src/schema/types.js';
import { livediskWords, PROJECT } from '../kit/program.js';

export const QEMU = 'qemu-system-x86_64';
export const hasQemu = spawnSync(QEMU, ['--version']).error === undefined;

/** What every machine of these tests is: no processor runs, and there is nothing that was not asked for. */
const BARE = ['-S', '-display', 'none', '-nodefaults', '-serial', 'none', '-monitor', 'none'];

/** A command over QMP, and what came back; a string is a line of the human monitor. */
export type Command = string | readonly [name: string, args?: JsonObject];

export type Side = 'ours' | 'theirs';

function program(side: Side, args: readonly string[]): [program: string, words: string[]] {
  const all = [...BARE, ...args];
  return side === 'theirs'
    ? [QEMU, ['-accel', 'tcg', ...all]]
    : [process.execPath, livediskWords('run', '-accel', 'tcg', ...all)];
}

/**
 * Starts a machine by that command line and gives it the commands, one after the other. The answers and events, in
 * their order, without what changes from run to run: times, generated names.
 */
export async function converse(
  side: Side,
  folder: string,
  args: readonly string[],
  commands: readonly Command[],
): Promise<JsonValue[]> {
  const [file, words] = program(side, [
    ...args.map((word) => word.replaceAll('FOLDER', folder)),
    '-qmp',
    'stdio',
  ]);
  const child = spawn(file, words, { cwd: PROJECT, stdio: ['pipe', 'pipe', 'inherit'] });
  const messages: JsonValue[] = [];
  const queue = [['qmp_capabilities'] as const, ...commands, ['quit'] as const];
  const next = (): void => {
    const command = queue.shift();
    if (command === undefined) return;
    const [execute, given] =
      typeof command === 'string' ? ['human-monitor-command', { 'command-line': command }] : command;
    const text = JSON.stringify({ execute, ...(given && { arguments: given }) });
    child.stdin.write(text.replaceAll('FOLDER', folder));
  };
  for await (const line of createInterface({ input: child.stdout })) {
    // What qemu-io prints comes on the same output.
    if (!line.startsWith('{')) {
      messages.push(line.replaceAll(folder, 'FOLDER').replace(/ops; .*/, 'ops'));
      continue;
    }
    const message = JSON.parse(line) as JsonObject;
    if (!('QMP' in message)) messages.push(comparable(message, folder));
    if ('QMP' in message || 'return' in message || 'error' in message) next();
  }
  return messages;
}

function comparable(message: JsonObject, folder: string): JsonObject {
  const text = JSON.stringify(message, (key: string, value: JsonValue) => {
    // A dirty-flag is told here of drivers too that have no such thing in QEMU.
    if (key === 'dirty-flag') return undefined;
    return key === 'timestamp' || key === 'actual-size' ? 0 : value;
  });
  return JSON.parse(
    text
      .replaceAll(/#block\d+/g, '#block')
      .replaceAll(/unattached\/device\[\d+\]/g, 'unattached')
      .replaceAll(folder, 'FOLDER'),
  ) as JsonObject;
}

/** How a program that cannot start says so, without its name. */
export function failure(
  side: Side,
  folder: string,
  args: readonly string[],
): { status: number | null; error: string } {
  const [file, words] = program(
    side,
    args.map((word) => word.replaceAll('FOLDER', folder)),
  );
  const { status, stderr } = spawnSync(file, words, { cwd: PROJECT, encoding: 'utf8', timeout: 30_000 });
  return { status, error: stderr.replace(/^[^:]*: /, '').replaceAll(folder, 'FOLDER') };
}
