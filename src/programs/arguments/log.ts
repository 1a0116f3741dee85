import { BlockError } from '../../base/error.js';
import { traceHelp, type TraceOptions } from './trace.js';

/**
 * What -d may ask for beside trace points. All but the last two tell of processors that run a guest, so here they tell nothing;
 * `tid` has a file for each thread, and all lines are the main thread's.
 */
const ITEMS: Readonly<Record<string, string>> = {
  out_asm: 'code that is made for the host',
  in_asm: 'code of the guest',
  op: 'what is between them',
  op_opt: 'that, made better',
  op_ind: 'that, before indirect registers are taken out',
  int: 'interrupts and exceptions',
  exec: 'each block of code that is run',
  cpu: 'registers before each block',
  fpu: 'registers of the floating-point unit with them',
  mmu: 'translation of addresses',
  pcall: 'far calls and exceptions of protected mode',
  cpu_reset: 'the processor before its resets',
  unimp: 'what the machine lacks and a guest asks for',
  guest_errors: 'what a guest does wrong with its hardware',
  page: "a user program's memory when it begins",
  nochain: 'blocks of code one by one',
  plugin: 'what plugins say',
  strace: "a user program's system calls",
  tid: "a file for each thread: -D needs '%d' in its name",
};

const TRACE = 'trace:';

/** What -d and -D ask for. */
export interface Log {
  file: string | undefined;
  traces: TraceOptions[];
}

/** A text to print in place of all else, and the status to end with. */
export interface LogAnswer {
  text: string;
  status: number;
}

/**
 * What -d and -D say; an answer where `items` asks for one, or has a word that is none. `%d` in `file` is the process's number.
 * Errors: invalid, in QEMU's words.
 */
export function parseLog(
  items: string | undefined,
  file: string | undefined,
  processId: number,
): Log | LogAnswer {
  const traces: TraceOptions[] = [];
  let hasFilePerThread = false;
  for (const item of items?.split(',') ?? []) {
    if (isTraceItem(item) && item !== TRACE) {
      const enable = item.slice(TRACE.length);
      const help = traceHelp(enable);
      if (help !== undefined) return { text: help, status: 0 };
      traces.push({ enable, events: undefined, file: undefined });
    } else if (item === 'all' || item === 'tid') hasFilePerThread = true;
    else if (!Object.hasOwn(ITEMS, item)) return { text: logHelp(), status: 1 };
  }
  if (hasFilePerThread && file?.includes('%') !== true)
    throw new BlockError('invalid', "Filename template with '%d' required for 'tid'");
  return { file: file === undefined ? undefined : logFilename(file, processId), traces };
}

function logHelp(): string {
  const line = (name: string, meaning: string): string => `${name.padEnd(15)} ${meaning}\n`;
  const lines = Object.entries(ITEMS).map(([name, meaning]) => line(name, meaning));
  const trace = line('trace:PATTERN', 'trace points that match ("-d trace:help" lists them)');
  return `Log items (comma separated):\n${lines.join('')}${trace}`;
}

/** Whether an item of -d is about trace points. */
export function isTraceItem(item: string): boolean {
  return item.startsWith(TRACE);
}

/** Errors: invalid for any other directive than one `%d`. */
function logFilename(template: string, processId: number): string {
  const [before = '', after, more] = template.split('%');
  if (after === undefined) return template;
  if (more !== undefined || !after.startsWith('d'))
    throw new BlockError('invalid', `Bad logfile template: ${template}`);
  return `${before}${processId}${after.slice(1)}`;
}
