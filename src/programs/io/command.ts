import { assert } from '../../base/assert.js';
import { BlockError } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import { Permission } from '../../block/permissions.js';
import { breakCommand, removeBreakCommand, resumeCommand, waitBreakCommand } from './breakpoints.js';
import {
  allocCommand,
  flushCommand,
  infoCommand,
  lengthCommand,
  mapCommand,
  sleepCommand,
  truncateCommand,
} from './inspect.js';
import { parseBytes } from './numbers.js';
import { reopenCommand } from './reopen.js';
import { CommandFailure, type IoOptions, IoSession, UsageFailure } from './session.js';
import {
  aioReadCommand,
  aioWriteCommand,
  discardCommand,
  readCommand,
  readvCommand,
  writeCommand,
  writevCommand,
} from './transfer.js';

interface IoCommand {
  name: string;
  alias?: string;
  arguments: string;
  summary: string;
  /** Words after the name: at least, and at most (Infinity: any number). */
  words: readonly [number, number];
  /** What it needs beyond reading. */
  needs?: number;
  /** Needs no disk that is open. */
  withoutDisk?: true;
  /** Only where disks come from a source. */
  ofSource?: true;
  run(session: IoSession, words: readonly string[]): Promise<boolean> | boolean;
}

const COMMANDS: readonly IoCommand[] = [
  {
    name: 'abort',
    withoutDisk: true,
    arguments: '',
    summary: 'simulate a program crash using abort(3)',
    words: [0, 0],
    run: (session) => raise(session, 'abort', 'SIGABRT'),
  },
  {
    name: 'aio_flush',
    arguments: '',
    summary: 'completes all outstanding aio requests',
    words: [0, 0],
    run: async (session) => {
      // As in QEMU it counts as a flush, and is none.
      const { statistics, clock } = session.backend;
      const startedMs = clock.nowMs();
      await session.drain();
      statistics.done('flush', 0, startedMs, clock.nowMs());
      return true;
    },
  },
  {
    name: 'aio_read',
    arguments: '[-Ciqv] [-P pattern] off len [len..]',
    summary: 'asynchronously reads a number of bytes',
    words: [2, Infinity],
    run: aioReadCommand,
  },
  {
    name: 'aio_write',
    arguments: '[-Cfiquz] [-P pattern] off len [len..]',
    summary: 'asynchronously writes a number of bytes',
    words: [2, Infinity],
    needs: Permission.write,
    run: aioWriteCommand,
  },
  {
    name: 'alloc',
    arguments: 'offset [count]',
    summary: 'checks if offset is allocated in the file',
    words: [1, 2],
    run: allocCommand,
  },
  {
    name: 'break',
    arguments: 'event tag',
    summary: 'sets a breakpoint on event and tags the stopped request as tag',
    words: [2, 2],
    run: breakCommand,
  },
  {
    name: 'close',
    alias: 'c',
    ofSource: true,
    arguments: '',
    summary: 'close the current open file',
    words: [0, 0],
    run: async (session) => {
      await session.close();
      return true;
    },
  },
  {
    name: 'discard',
    alias: 'd',
    arguments: '[-Cq] off len',
    summary: 'discards a number of bytes at a specified offset',
    words: [2, Infinity],
    needs: Permission.write,
    run: discardCommand,
  },
  {
    name: 'flush',
    alias: 'f',
    arguments: '',
    summary: 'flush all in-core file state to disk',
    words: [0, 0],
    run: flushCommand,
  },
  {
    name: 'help',
    alias: '?',
    withoutDisk: true,
    arguments: '[command]',
    summary: 'help for one or all commands',
    words: [0, 1],
    run: ({ output }, [name]) => help(output.print, name),
  },
  {
    name: 'info',
    alias: 'i',
    arguments: '',
    summary: 'prints information about the current file',
    words: [0, 0],
    run: infoCommand,
  },
  {
    name: 'length',
    alias: 'l',
    arguments: '',
    summary: 'gets the length of the current file',
    words: [0, 0],
    run: lengthCommand,
  },
  {
    name: 'map',
    arguments: '',
    summary: 'prints the allocated areas of a file',
    words: [0, 0],
    run: mapCommand,
  },
  {
    name: 'open',
    alias: 'o',
    withoutDisk: true,
    ofSource: true,
    arguments: '[-rsCnkU] [-t cache] [-d discard] [-o options] [path]',
    summary: 'open the file specified by path',
    words: [1, Infinity],
    run: openCommand,
  },
  {
    name: 'quit',
    alias: 'q',
    withoutDisk: true,
    arguments: '',
    summary: 'exit the program',
    words: [0, 0],
    run: (session) => (session.hasQuit = true),
  },
  {
    name: 'read',
    alias: 'r',
    arguments: '[-abCqv] [-P pattern [-s off] [-l len]] off len',
    summary: 'reads a number of bytes at a specified offset',
    words: [2, Infinity],
    run: readCommand,
  },
  {
    name: 'readv',
    arguments: '[-Cqv] [-P pattern] off len [len..]',
    summary: 'reads a number of bytes at a specified offset',
    words: [2, Infinity],
    run: readvCommand,
  },
  {
    name: 'remove_break',
    arguments: 'tag',
    summary: 'remove a breakpoint by tag',
    words: [1, 1],
    run: removeBreakCommand,
  },
  {
    name: 'reopen',
    arguments: '[(-r|-w)] [-c cache] [-o options]',
    summary: 'reopens an image with new options',
    words: [0, Infinity],
    run: reopenCommand,
  },
  {
    name: 'resume',
    arguments: 'tag',
    summary: 'resumes the request tagged as tag',
    words: [1, 1],
    run: resumeCommand,
  },
  {
    name: 'sigraise',
    withoutDisk: true,
    arguments: 'signal',
    summary: 'raises a signal',
    words: [1, 1],
    run: (session, [text = '']) => raise(session, 'sigraise', parseBytes(text)),
  },
  {
    name: 'sleep',
    withoutDisk: true,
    arguments: 'milliseconds',
    summary: 'waits for the given value in milliseconds',
    words: [1, 1],
    run: sleepCommand,
  },
  {
    name: 'truncate',
    alias: 't',
    arguments: 'off',
    summary: 'truncates the current file at the given offset',
    words: [1, 3],
    needs: Permission.write | Permission.resize,
    run: truncateCommand,
  },
  {
    name: 'wait_break',
    arguments: 'tag',
    summary: 'waits for the suspension of a request',
    words: [1, 1],
    run: waitBreakCommand,
  },
  {
    name: 'write',
    alias: 'w',
    arguments: '[-bcCfnquz] [-P pattern | -s source_file] off len',
    summary: 'writes a number of bytes at a specified offset',
    words: [2, Infinity],
    needs: Permission.write,
    run: writeCommand,
  },
  {
    name: 'writev',
    arguments: '[-Cfq] [-P pattern] off len [len..]',
    summary: 'writes a number of bytes at a specified offset',
    words: [2, Infinity],
    needs: Permission.write,
    run: writevCommand,
  },
];

async function openCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  assert(session.source, 'known only where disks come from a source');
  try {
    const open = session.source.prepare(words);
    if (session.hasDisk) throw new CommandFailure("qemu-io: file open already, try 'help close'", true);
    session.use(await open());
    return true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandFailure(`qemu-io: ${error.message}`, true);
  }
}

/** What a crash leaves is seen afterwards: nothing is closed. */
function raise({ output }: IoSession, name: string, signal: NodeJS.Signals | number): boolean {
  if (!output.raise) throw new CommandFailure(`${name} is not supported by livedisk`);
  output.raise(signal);
  return true;
}

/**
 * One command of qemu-io on a disk, as qemu-io 7.2 words its answers; false when it failed (which has been told).
 * An aio_ request is not waited for: it prints when it is done.
 */
export function runIoCommand(
  backend: BlockBackend,
  line: string,
  print: (text: string) => void,
  options: IoOptions = {},
): Promise<boolean> {
  const output = { print, error: options.error ?? print };
  return runInSession(new IoSession(backend, output, options), line);
}

/** The same in a session, whose aio_flush waits for its earlier aio_ commands. */
export async function runInSession(session: IoSession, line: string): Promise<boolean> {
  const [name, ...words] = line.split(' ').filter((word) => word !== '');
  if (name === undefined) return true;
  const { output } = session;
  const command = findCommand(name);
  if (!command || (command.ofSource && !session.source)) {
    output.error(`command "${name}" not found\n`);
    return false;
  }
  if (!command.withoutDisk && !session.hasDisk) {
    output.error("no file open, try 'help open'\n");
    return false;
  }
  const [least, most] = command.words;
  if (words.length < least || words.length > most) {
    output.error(`bad argument count ${words.length} to ${name}, expected ${countText(least, most)}\n`);
    return false;
  }
  if (session.hasDisk && !(await mayRun(session, command))) return false;
  try {
    return await command.run(session, words);
  } catch (error) {
    return tellFailure(session, command, error);
  }
}

/** What a backend for one command must be allowed. */
export function permissionsFor(line: string): number {
  const [name = ''] = line.split(' ').filter((word) => word !== '');
  return Permission.consistentRead | (findCommand(name)?.needs ?? 0);
}

function findCommand(name: string): IoCommand | undefined {
  return COMMANDS.find((command) => command.name === name || command.alias === name);
}

function countText(least: number, most: number): string {
  if (most === Infinity) return `at least ${least} arguments`;
  return least === most ? `${least} arguments` : `between ${least} and ${most} arguments`;
}

async function mayRun(session: IoSession, { needs = 0 }: IoCommand): Promise<boolean> {
  try {
    await session.acquire(needs);
    return true;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    session.output.error(`qemu-io: ${error.message}\n${error.hint === undefined ? '' : `${error.hint}\n`}`);
    return false;
  }
}

function tellFailure(session: IoSession, command: IoCommand, error: unknown): boolean {
  const { output } = session;
  if (error instanceof UsageFailure) {
    if (error.reason !== '') output.error(`${error.reason}\n`);
    output.print(oneLine(command));
  } else if (error instanceof CommandFailure) {
    (error.onError ? output.error : output.print)(`${error.message}\n`);
  } else if (error instanceof BlockError) {
    output.print(`${error.message}\n`);
  } else {
    throw error;
  }
  return false;
}

function oneLine(command: IoCommand): string {
  return `${command.name} ${command.arguments}${command.arguments === '' ? '' : ' '}-- ${command.summary}\n`;
}

/** A line for each command. */
export function commandSummaries(): string {
  return COMMANDS.map(oneLine).join('');
}

function help(print: (text: string) => void, name: string | undefined): boolean {
  if (name === undefined) {
    print(`${commandSummaries()}\nUse 'help commandname' for extended help.\n`);
    return true;
  }
  const command = findCommand(name);
  print(command ? oneLine(command) : `command ${name} not found\n`);
  return command !== undefined;
}
