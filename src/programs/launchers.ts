import {
  accessSync,
  chmodSync,
  constants,
  lstatSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { BlockError, errnoError, toBlockError } from '../base/error.js';

export interface LaunchersIo {
  /** The runtime and the program that the scripts start. */
  runtimePath: string;
  programPath: string;
  print: (text: string) => void;
  printError: (text: string) => void;
}

export const LAUNCHERS_USAGE = `usage: livedisk launchers FOLDER [--force]

Writes scripts with the names of QEMU's programs (qemu-system-x86_64, qemu-img and so on) into FOLDER that start
livedisk, for those who expect QEMU's in their PATH. Files there that are not such scripts are left alone, unless --force
says to replace them.
`;

/** In the first lines of every script; what has it may be overwritten. */
export const LAUNCHER_MARK = '# Written by "livedisk launchers"';

/** The subcommand that stands in for each program of QEMU. */
const SUBCOMMANDS: ReadonlyMap<string, string> = new Map([
  ['qemu-system-x86_64', 'run'],
  ['qemu-storage-daemon', 'storage-daemon'],
  ['qemu-img', 'img'],
  ['qemu-io', 'io'],
  ['qemu-nbd', 'nbd'],
]);

function thisProgram(): LaunchersIo {
  return {
    runtimePath: process.execPath,
    // Not the link by which it may have been started.
    programPath: realpathSync(process.argv[1] ?? ''),
    print: (text) => void process.stdout.write(text),
    printError: (text) => void process.stderr.write(text),
  };
}

/**
 * `livedisk launchers`. Answers the exit status. `subcommands` are those that the program has: programs of QEMU that
 * none of them stands in for get no script.
 */
export async function launchersMain(
  args: readonly string[],
  subcommands: readonly string[],
  io: LaunchersIo = thisProgram(),
): Promise<number> {
  const launchers = [...SUBCOMMANDS].filter(([, subcommand]) => subcommands.includes(subcommand));
  if (args.includes('--help') || args.includes('-h')) {
    io.print(LAUNCHERS_USAGE);
    return 0;
  }
  const folders = args.filter((arg) => !arg.startsWith('-'));
  const unknown = args.find((arg) => arg.startsWith('-') && arg !== '--force');
  const [name] = folders;
  if (unknown !== undefined || name === undefined || folders.length > 1) {
    const what = unknown === undefined ? 'one FOLDER is needed' : `unknown option '${unknown}'`;
    io.printError(`livedisk launchers: ${what}\n${LAUNCHERS_USAGE}`);
    return 1;
  }
  try {
    io.print(install(resolve(name), launchers, args.includes('--force'), io));
    return 0;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    io.printError(`livedisk launchers: ${error.message}\n`);
    return 1;
  }
}

/**
 * Writes the scripts and tells how to use them. Errors: exists for foreign files, before any script is written; those
 * of the file system.
 */
function install(
  folder: string,
  launchers: ReadonlyArray<[program: string, subcommand: string]>,
  force: boolean,
  { runtimePath, programPath }: LaunchersIo,
): string {
  const paths = launchers.map(([program]) => join(folder, program));
  const foreign = force ? [] : paths.filter((path) => attempt(path, () => isForeign(path)));
  if (foreign.length > 0) {
    throw new BlockError(
      'exists',
      `not written by livedisk, so left alone (--force replaces): ${foreign.join(' ')}`,
    );
  }
  for (const path of paths)
    if (attempt(path, () => lstatSync(path, { throwIfNoEntry: false }))?.isDirectory())
      throw errnoError('EISDIR', path, { path });
  attempt(programPath, () => accessSync(programPath, constants.R_OK));
  attempt(folder, () => mkdirSync(folder, { recursive: true }));
  for (const [program, subcommand] of launchers) {
    const path = join(folder, program);
    attempt(path, () =>
      writeScript(path, script(program, [runtimePath, programPath, '--as', program, subcommand])),
    );
  }
  const list = paths.map((path) => `  ${path}\n`).join('');
  return `Written:\n${list}\nTo use them in place of QEMU's programs:\n\n  PATH=${quote(folder)}:$PATH\n`;
}

function attempt<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw toBlockError(error, path, { path });
  }
}

/** Something is there that is no script of ours; links are never followed. */
function isForeign(path: string): boolean {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (!found) return false;
  return !found.isFile() || !readFileSync(path, 'latin1').startsWith(`#!/bin/sh\n${LAUNCHER_MARK}`);
}

/** Beside it first, so that nobody runs half a script and no link is written through. */
function writeScript(path: string, text: string): void {
  const temporary = `${path}.${process.pid}.new`;
  try {
    writeFileSync(temporary, text, { flag: 'wx' });
    chmodSync(temporary, 0o755);
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}

function script(program: string, words: readonly string[]): string {
  const command = words.map(quote).join(' ');
  return `#!/bin/sh\n${LAUNCHER_MARK}: livedisk in the place of ${program}.\nexec ${command} "$@"\n`;
}

/** A word of the shell. */
function quote(word: string): string {
  return /^[A-Za-z0-9_/.:=+-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
