import { createInterface, type Interface } from 'node:readline';
import { printable, printableLines } from '../../view/words.js';
import type { QmpClient } from '../../wire/qmp/client.js';
import { History, HISTORY_LINES } from './history.js';
import type { ShellIo } from './main.js';
import { ReverseSearch } from './reverse-search.js';
import type { Shell } from './shell.js';

/** Commands as somebody types them. Answers the exit status. */
export async function interact(shell: Shell, client: QmpClient, io: ShellIo): Promise<number> {
  const history = new History(io.historyFile);
  // The newest first, as readline keeps them for itself.
  const lines = [...history.lines];
  const keys = new ReverseSearch(io.input, {
    lines: () => lines,
    show: (text) => void io.output.write(text),
    restore: () => terminal.prompt(true),
  });
  const terminal = openTerminal(shell, io, keys, lines);
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
    if (shell.stopWaiting()) return;
    // An answer that never comes does not hold us.
    shell.isLeaving = true;
    terminal.close();
    client.close();
  });
  io.output.write(`${printableLines(shell.welcome)}\n`);
  terminal.prompt();
  for await (const line of terminal) {
    busy = true;
    if (isKept(line)) lines.unshift(line);
    history.add(line);
    const outcome = await shell.run(line);
    busy = false;
    if (outcome === 'exit' || outcome === 'disconnected') break;
    terminal.setPrompt(shell.prompt);
    terminal.prompt();
  }
  terminal.close();
  keys.close();
  io.output.write('\n');
  shell.end();
  if (!isClosed || shell.isLeaving) return 0;
  io.error.write('livedisk shell: the server closed the connection\n');
  return 1;
}

function openTerminal(shell: Shell, io: ShellIo, input: ReverseSearch, lines: readonly string[]): Interface {
  const terminal = createInterface({
    input,
    output: io.output,
    prompt: shell.prompt,
    terminal: true,
    history: [...lines],
    historySize: HISTORY_LINES,
    completer: (line: string, answer: (error: null, result: [string[], string]) => void) => {
      shell.complete(line).then(
        // What would move the cursor has to be written out, as JSON.
        ([words, part]) => answer(null, [words.filter((word) => printable(word) === word), part]),
        () => answer(null, [[], line]),
      );
    },
  });
  terminal.on('history', (kept: string[]) => {
    if (kept[0] !== undefined && !isKept(kept[0])) kept.shift();
  });
  return terminal;
}

/** What begins with a space may hold a secret. */
function isKept(line: string): boolean {
  return line.trim() !== '' && !line.startsWith(' ');
}
