import { BlockError, toBlockError } from '../../base/error.js';
import { NO_TRACE_OUTPUT, Trace } from '../../base/trace.js';
import { readWholeFile } from '../../block/objects/whole-file.js';
import type { Host } from '../../host/host.js';
import { parseImageOpts } from './image-opts.js';

/** What --trace (-trace, -T) says: `[[enable=]PATTERN][,events=FILE][,file=FILE]`. */
export interface TraceOptions {
  enable: string | undefined;
  events: string | undefined;
  file: string | undefined;
}

const KEYS = ['enable', 'events', 'file'] as const;

/** The answer to `help`; undefined where the option asks for none. */
export function traceHelp(value: string): string | undefined {
  if (value !== 'help' && value !== '?') return undefined;
  return new Trace(NO_TRACE_OUTPUT).points.map(({ name }) => `${name}\n`).join('');
}

/** Errors: invalid, in QEMU's words. */
export function parseTrace(value: string): TraceOptions {
  const given = parseImageOpts(value, { impliedKey: 'enable', warn: () => undefined });
  const [enable, events, file] = KEYS.map((key) => {
    const text = given.take(key);
    return typeof text === 'string' ? text : undefined;
  });
  if (given.firstKey !== undefined) throw new BlockError('invalid', `Invalid parameter '${given.firstKey}'`);
  return { enable, events, file };
}

/**
 * Does what it says. `warn`: told of names of no point, with what stands between the program's name and that. Errors: those of
 * the files.
 */
export async function applyTrace(
  host: Host,
  { enable, events, file }: TraceOptions,
  warn: (text: string) => void,
): Promise<void> {
  const { trace } = host;
  const take = (line: string, where = ' '): void => {
    if (trace.switch(line)) return;
    const name = line.startsWith('-') ? line.slice(1) : line;
    warn(`${where}warning: trace event '${name}' does not exist`);
  };
  if (enable !== undefined && enable !== '') take(enable);
  if (events !== undefined)
    for (const [index, line] of (await linesOf(host, events)).entries())
      if (line !== '' && !line.startsWith('#')) take(line, `${events}:${index + 1}: `);
  if (file !== undefined) trace.output.toFile(file);
}

/** Far more than the names of all points. */
const MAX_EVENTS_BYTES = 1024 * 1024;

async function linesOf(host: Host, path: string): Promise<string[]> {
  try {
    return (await readWholeFile(host, path, MAX_EVENTS_BYTES)).toString().split('\n');
  } catch (error) {
    const { message } = toBlockError(error);
    const why = message.replace(/^Could not open '.*': /s, '');
    throw new BlockError('io', `${path}: ${why}`, { cause: error });
  }
}
