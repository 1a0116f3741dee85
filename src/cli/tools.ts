import { createInterface } from 'node:readline';
import { allDrivers } from '../drivers/index.js';
import { createRealHost } from '../host/real.js';
import { ioMain } from '../io/main.js';

const OUTPUT = {
  print: (text: string): void => void process.stdout.write(text),
  error: (text: string): void => void process.stderr.write(text),
};

/** `livedisk io`: commands from -c, else from standard input. */
export async function ioTool(args: readonly string[]): Promise<number> {
  const lines = createInterface({ input: process.stdin });
  try {
    return await ioMain(args, OUTPUT, createRealHost(), allDrivers, lines);
  } finally {
    lines.close();
  }
}
