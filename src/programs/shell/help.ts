import type { Argument, ServerSchema } from './server-schema.js';

export const USAGE = `usage: livedisk shell [-p] [-H] SOCKET

Talks QMP to the server at SOCKET: a path (also unix:PATH), or HOST:PORT (also tcp:HOST:PORT).
Without a terminal one command a line is read from standard input, and the exit status is 1 when one failed.

  -p, --pretty    print answers and events over several lines
  -H, --hmp       commands of the human monitor
  -h, --help      this text
`;

const SYNTAX = `COMMAND KEY=VALUE KEY.NESTED=VALUE KEY={JSON}   runs a command; quote values that have spaces
{JSON}                                          sends a request as it is
transaction(                                    begins a transaction: an action a line, written as a command, then )
help [COMMAND [KEY]]                            what there is, what a command takes
exit                                            leaves the shell; the server goes on`;

/** Answers to help, help COMMAND and help COMMAND KEY.NESTED. */
export function helpText(schema: ServerSchema, words: readonly string[]): string {
  const [command, key] = words;
  if (command === undefined) return `${SYNTAX}\n\n${columns(schema.commandNames)}`;
  if (!schema.commandNames.includes(command)) {
    const similar = schema.commandNames.filter((name) => name.includes(command));
    return similar.length > 0 ? columns(similar) : `The command ${command} has not been found`;
  }
  const path = key === undefined ? [] : key.split('.');
  const described = schema.arguments(command, path);
  if (described.length > 0)
    return [...(key === undefined ? [command] : []), ...described.map(describe)].join('\n');
  if (key === undefined) return `${command}\n  takes no arguments`;
  const same = schema.arguments(command, path.slice(0, -1)).filter(({ name }) => name === path.at(-1));
  const values = schema.valuesOf(command, path);
  if (values.length > 0) return columns(values);
  return same.length > 0 ? same.map(describe).join('\n') : `${command} has no argument '${key}'`;
}

function describe({ name, type, isRequired, cases }: Argument): string {
  const text = `${name}=${type}`;
  const only = cases.length > 0 ? `   (${cases.join(', ')})` : '';
  return `  ${isRequired ? text : `[${text}]`}${only}`;
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
