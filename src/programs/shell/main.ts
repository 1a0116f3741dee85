import { createInterface } from 'node:readline';
import { hintOf } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { QmpClient } from '../../wire/qmp/client.js';
import { printableLines } from '../../view/words.js';
import { isForPeople } from '../../wire/qmp/registry.js';
import { USAGE } from './help.js';
import { historyFile } from './history.js';
import { parseOptions, type ShellOptions } from './options.js';
import { ProgressView, type Screen } from './progress-view.js';
import { Shell } from './shell.js';
import { interact } from './terminal.js';

export interface ShellIo {
  host: Host;
  input: NodeJS.ReadableStream & { isTTY?: boolean; setRawMode?: (isRaw: boolean) => unknown };
  output: Screen;
  error: Screen;
  /** Where typed lines are kept. */
  historyFile?: string | undefined;
}

function standardIo(): ShellIo {
  const { stdin: input, stdout: output, stderr: error } = process;
  return { host: createRealHost(), input, output, error, historyFile: historyFile() };
}

/** `livedisk shell`: commands from its arguments or `io.input` to a QMP server. Answers the exit status. */
export async function shellMain(args: readonly string[], io: ShellIo = standardIo()): Promise<number> {
  if (args.includes('-h') || args.includes('--help')) {
    io.output.write(USAGE);
    return 0;
  }
  try {
    const options = parseOptions(args);
    const client = await QmpClient.connect(io.host, options.address, { negotiate: options.negotiate });
    try {
      return await talk(client, options, io);
    } finally {
      client.close();
    }
  } catch (error) {
    if (!isForPeople(error)) throw error;
    io.error.write(printableLines(`livedisk shell: ${error.message}\n${hintOf(error)}`));
    return 1;
  }
}

async function talk(client: QmpClient, options: ShellOptions, io: ShellIo): Promise<number> {
  const { words, waitFor } = options;
  const { clock } = io.host;
  const shell = new Shell(client, {
    ...options,
    clock,
    screen: io.output,
    print: (text) => void io.output.write(`${printableLines(text)}\n`),
  });
  if (waitFor !== undefined) return runAndWait(shell, { words, id: waitFor }, io);
  if (words.length > 0) return (await shell.runWords(words)) === 'done' || shell.isLeaving ? 0 : 1;
  return io.input.isTTY === true ? interact(shell, client, io) : readAll(shell, client, io);
}

/** `--wait JOB`: watches from before the command, which may be what starts the job. Errors: not-found; closed. */
async function runAndWait(
  shell: Shell,
  { words, id }: { words: readonly string[]; id: string },
  { host: { clock }, error: screen }: ShellIo,
): Promise<number> {
  const watch = shell.watch(id);
  if (words.length > 0 && (await shell.runWords(words)) !== 'done') return 1;
  const view = new ProgressView(screen, clock, id);
  const { isGood, text } = await watch.wait((state) => view.show(state));
  view.end(text);
  return isGood ? 0 : 1;
}

/** One command a line, in order; status 1 when one failed or the server went away. */
async function readAll(shell: Shell, client: QmpClient, io: ShellIo): Promise<number> {
  let failed = false;
  let isClosed = false;
  client.onEvent((event) => shell.printEvent(event));
  const input = createInterface({ input: io.input, crlfDelay: Infinity });
  void client.closed.then(() => {
    isClosed = true;
    input.close();
  });
  for await (const line of input) {
    const outcome = await shell.run(line);
    if (outcome === 'failed') failed = true;
    if (outcome === 'exit') break;
    if (outcome === 'disconnected') return 1;
  }
  if (shell.end() === 'failed') failed = true;
  return failed || (isClosed && !shell.isLeaving) ? 1 : 0;
}
