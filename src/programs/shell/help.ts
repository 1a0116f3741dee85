import { meaningOfArgument, meaningOfCommand } from './meanings.js';
import type { Argument, ServerSchema } from './server-schema.js';

export const USAGE = `usage: livedisk shell [OPTION]... SOCKET [--wait JOB] [COMMAND [KEY=VALUE]...]

Talks QMP to the server at SOCKET, livedisk's or a QEMU's: a path (also unix:PATH), or HOST:PORT (also tcp:HOST:PORT).
With a COMMAND that one is run, else commands come from the terminal or, one a line, from standard input. The exit status
is 1 when one failed.

  -p, --pretty            print answers and events over several lines
  -v, --verbose           print what is sent, too
  -H, --hmp               commands are the human monitor's
  -N, --skip-negotiation  wait for no greeting and negotiate nothing
  -w, --wait JOB          after that, show the progress of a job until it has ended or waits for a command;
                          the exit status is 1 when it failed, was cancelled or is not there
  -h, --help              this text

What was typed is kept in ~/.livedisk_history ($LIVEDISK_HISTORY names another file, or none), but for lines that begin
with a space. Tab completes names of commands, arguments, values, nodes and jobs; Ctrl-R searches.
`;

const SYNTAX = `COMMAND KEY=VALUE KEY.NESTED=VALUE KEY={JSON}   runs a command; quote values that have spaces
{JSON}                                          sends a request as it is
transaction(                                    begins a transaction: an action a line, written as a command, then )
wait JOB                                        shows the progress of a job until it has ended (Ctrl-C: no longer)
help [COMMAND [KEY]]                            what there is, what a command takes
exit                                            leaves the shell; the server goes on`;

/** Answers to help, help COMMAND and help COMMAND KEY.NESTED. */
export function helpText(schema: ServerSchema, words: readonly string[]): string {
  const [command, key] = words;
  if (command === undefined) return `${SYNTAX}\n\n${columns(schema.commandNames)}`;
  if (!schema.commandNames.includes(command)) {
    const similar = schema.commandNames.filter((name) => name.includes(command));
    return similar.length > 0 ? summaries(similar) : `The command ${command} has not been found`;
  }
  const path = key === undefined ? [] : key.split('.');
  const described = schema.arguments(command, path);
  const table = (list: readonly Argument[]): string => describe(command, list);
  if (key === undefined) return `${summaries([command])}\n${table(described) || '  takes no arguments'}`;
  if (described.length > 0) return table(described);
  const same = schema.arguments(command, path.slice(0, -1)).filter(({ name }) => name === path.at(-1));
  const values = schema.valuesOf(command, path);
  if (values.length > 0) return columns(values);
  return same.length > 0 ? table(same) : `${command} has no argument '${key}'`;
}

/** A command a line, with what it does. */
function summaries(names: readonly string[]): string {
  const width = Math.max(...names.map((name) => name.length));
  return names
    .map((name) => {
      const meaning = meaningOfCommand(name);
      return meaning === undefined ? name : `${name.padEnd(width)}  ${meaning}`;
    })
    .join('\n');
}

/** Where meanings begin, as far as there is room. */
const MEANING_COLUMN = 36;

function describe(command: string, list: readonly Argument[]): string {
  return list
    .map(({ name, type, isRequired, cases }) => {
      const text = `${name}=${type}`;
      const only = cases.length > 0 ? ` (${cases.join(', ')})` : '';
      const head = `  ${isRequired ? text : `[${text}]`}${only}`;
      const meaning = meaningOfArgument(command, name);
      if (meaning === undefined) return head;
      const gap = head.length < MEANING_COLUMN ? ' '.repeat(MEANING_COLUMN - head.length) : '  ';
      return `${head}${gap}${meaning}`;
    })
    .join('\n');
}

function columns(names: readonly string[], widthChars = 78): string {
  const cell = Math.max(...names.map((name) => name.length), 0) + 2;
  const perLine = Math.max(1, Math.floor(widthChars / cell));
  const lines: string[] = [];
  for (let at = 0; at < names.length; at += perLine) {
    const cells = names.slice(at, at + perLine).map((name) => name.padEnd(cell));
    lines.push(cells.join('').trimEnd());
  }
  return lines.join('\n');
}
