import { allDrivers } from '../drivers/index.js';
import { raiseSignal } from '../host/exit.js';
import { createRealHost } from '../host/real.js';
import { imgMain } from './img/main.js';
import { ioMain } from './io/main.js';
import { nbdMain } from './nbd/main.js';

const OUTPUT = {
  print: (text: string): void => void process.stdout.write(text),
  error: (text: string): void => void process.stderr.write(text),
};

/** Lines of standard input, which is not touched before the first is asked for. */
async function* inputLines(): AsyncIterable<string> {
  const { createInterface } = await import('node:readline');
  yield* createInterface({ input: process.stdin });
}

/** `livedisk io`: commands from -c, else from standard input. */
export function ioTool(args: readonly string[]): Promise<number> {
  return ioMain(args, { ...OUTPUT, raise: raiseSignal }, createRealHost(), allDrivers, inputLines());
}

/** `livedisk img`. */
export function imgTool(args: readonly string[]): Promise<number> {
  const terminal = process.stdout.isTTY ? { nowMs: (): number => performance.now() } : undefined;
  return imgMain(args, { ...OUTPUT, terminal, onProgressAsked }, createRealHost(), allDrivers);
}

/** As dd(1) and qemu-img: SIGUSR1 asks. */
function onProgressAsked(tell: () => void): () => void {
  process.on('SIGUSR1', tell);
  return () => void process.off('SIGUSR1', tell);
}

/** `livedisk nbd`. */
export function nbdTool(args: readonly string[]): Promise<number> {
  const { print, error: printError } = OUTPUT;
  return nbdMain(args, { print, printError, host: createRealHost(), drivers: allDrivers });
}
