import { accessSync, closeSync, constants, openSync, readSync, realpathSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { BlockError } from '../../base/error.js';
import { LAUNCHER_MARK } from '../launchers.js';

export const USUAL_PROGRAM = 'qemu-system-x86_64';
/** Of what starts a machine, so that a livedisk that is taken for one knows. */
const INSIDE = 'LIVEDISK_MACHINE';

/**
 * The path of the program that is to be the machine: one that is given, else the first of its usual name in $PATH that is
 * no launcher of livedisk's. Errors: not-found, with the package; invalid for a launcher that is given.
 */
export function findMachineProgram(asked: string | undefined, path = process.env['PATH'] ?? ''): string {
  const name = asked ?? USUAL_PROGRAM;
  const found = name.includes('/') ? [name] : path.split(':').map((folder) => join(folder || '.', name));
  const programs = found.filter(isProgram);
  const real = programs.find((program) => !isOurs(program));
  if (real !== undefined) return real;
  const [launcher] = programs;
  if (launcher !== undefined)
    throw new BlockError('invalid', `${launcher} starts livedisk itself, which runs no machine`, {
      hint: HINT,
    });
  throw new BlockError('not-found', `${name} is not installed`, { hint: HINT });
}

const HINT = `${USUAL_PROGRAM} of QEMU is needed; Debian has it in the package qemu-system-x86.`;

/** A program of util-linux. Errors: not-found, with the package. */
export function findTool(name: string): string {
  const folders = [...(process.env['PATH'] ?? '').split(':'), '/usr/bin', '/bin'];
  const found = folders.map((folder) => join(folder || '.', name)).find(isProgram);
  if (found !== undefined) return found;
  throw new BlockError('not-found', `${name} is not installed`, {
    hint: `A machine is started by ${name}, which Debian has in the package util-linux.`,
  });
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** A launcher, or livedisk under another name. */
function isOurs(path: string): boolean {
  if (realpathSync(path) === realpathSync(process.argv[1] ?? '')) return true;
  const fd = openSync(path, 'r');
  try {
    const head = Buffer.alloc(256);
    const lengthBytes = readSync(fd, head);
    return head.toString('latin1', 0, lengthBytes).includes(LAUNCHER_MARK);
  } finally {
    closeSync(fd);
  }
}

/** Errors: invalid, when some wrapper has led here from a machine's start. */
export function refuseInside(): void {
  if (process.env[INSIDE] === undefined) return;
  throw new BlockError('invalid', 'livedisk was started in the place of a machine by livedisk', {
    hint: HINT,
  });
}

export function environmentInside(): NodeJS.ProcessEnv {
  return { ...process.env, [INSIDE]: String(process.pid) };
}
