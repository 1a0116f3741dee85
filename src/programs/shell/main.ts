import { createInterface } from 'node:readline';
import { BlockError } from '../../base/error.js';
import type { Host, SocketAddress } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';
import { QmpClient } from '../../wire/qmp/client.js';
import { USAGE } from './help.js';
import { Shell } from './shell.js';

export interface ShellIo {
  host: Host;
  input: NodeJS.ReadableStream & { isTTY?: boolean };
  output: NodeJS.WritableStream;
  error: NodeJS.WritableStream;
}

interface ShellOptions {
  address: SocketAddress;
  pretty: boolean;
  human: boolean;
}

function standardIo(): ShellIo {
  const { stdin: input, stdout: output, stderr: error } = process;
  return { host: createRealHost(), input, output, error };
}

/** `livedisk shell`: commands from `io.input` to a QMP server. Answers the exit status. */
export async function shellMain(args: readonly string[], io: ShellIo = standardIo()): Promise<number> {
  if (args.includes('-h') || args.includes('--help')) {
    io.output.write(USAGE);
    return 0;
  }
  let client: QmpClient;
  let options: ShellOptions;
  try {
    options = parseOptions(args);
    client = await QmpClient.connect(io.host, options.address);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    io.error.write(`livedisk shell: ${error.message}\n${error.hint === undefined ? '' : `${error.hint}\n`}`);
    return 1;
  }
  const shell = new Shell(client, { ...options, print: (text) => void io.output.write(`${text}\n`) });
  try {
    return io.input.isTTY === true ? await interact(shell, client, io) : await readAll(shell, client, io);
  } finally {
    client.close();
  }
}

function parseOptions(args: readonly string[]): ShellOptions {
  const sockets: string[] = [];
  let [pretty, human] = [false, false];
  for (const arg of args) {
    if (arg === '-p' || arg === '--pretty') pretty = true;
    else if (arg === '-H' || arg === '--hmp') human = true;
    else if (arg.startsWith('-')) throw new BlockError('invalid', `unknown option '${arg}'`, { hint: USAGE });
    else sockets.push(arg);
  }
  const [socket] = sockets;
  if (socket === undefined || sockets.length > 1)
    throw new BlockError('invalid', 'one SOCKET is needed', { hint: USAGE });
  return { address: parseAddress(socket), pretty, human };
}

function parseAddress(text: string): SocketAddress {
  if (text.startsWith('unix:')) return { type: 'unix', path: text.slice('unix:'.length) };
  const match = /^(?:tcp:)?(?:\[([^\]]*)\]|([^/:[\]]*)):(\d+)$/.exec(text);
  if (!match) return { type: 'unix', path: text };
  const port = Number(match[3]);
  if (port < 1 || port > 65535) throw new BlockError('invalid', `'${text}' has no port in 1..65535`);
  return { type: 'inet', host: match[1] ?? match[2] ?? '', port };
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

async function interact(shell: Shell, client: QmpClient, io: ShellIo): Promise<number> {
  const terminal = createInterface({
    input: io.input,
    output: io.output,
    prompt: shell.prompt,
    terminal: true,
    completer: (line: string, answer: (error: null, result: [string[], string]) => void) => {
      shell.complete(line).then(
        (result) => answer(null, result),
        () => answer(null, [[], line]),
      );
    },
  });
  let busy = false;
  client.onEvent((event) => {
    if (!busy) io.output.write('\r\x1b[K');
    shell.printEvent(event);
    if (!busy) terminal.prompt(true);
  });
  let isClosed = false;
  void client.closed.then(() => {
    isClosed = true;
    terminal.close();
  });
  terminal.on('SIGINT', () => {
    // An answer that never comes does not hold us.
    shell.isLeaving = true;
    terminal.close();
    client.close();
  });
  io.output.write(`${shell.welcome}\n`);
  terminal.prompt();
  for await (const line of terminal) {
    busy = true;
    const outcome = await shell.run(line);
    busy = false;
    if (outcome === 'exit' || outcome === 'disconnected') break;
    terminal.setPrompt(shell.prompt);
    terminal.prompt();
  }
  terminal.close();
  io.output.write('\n');
  shell.end();
  if (!isClosed || shell.isLeaving) return 0;
  io.error.write('livedisk shell: the server closed the connection\n');
  return 1;
}
