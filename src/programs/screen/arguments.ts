import { parseArgs, type ParseArgsConfig } from 'node:util';
import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { createRealHost } from '../../host/real.js';

/** What show and top stand in. */
export interface ScreenIo {
  host: Host;
  output: { write(text: string): unknown; readonly isTTY?: boolean; readonly columns?: number };
}

export function standardIo(): ScreenIo {
  return { host: createRealHost(), output: process.stdout };
}

/** What show and top both take. */
export const SCREEN_OPTIONS = {
  color: { type: 'string' },
  help: { type: 'boolean', short: 'h' },
} as const;

/** Words of a command line by what `options` takes. Errors: invalid, with the usage as hint. */
export function parseWords<T extends NonNullable<ParseArgsConfig['options']>>(
  args: readonly string[],
  options: T,
  usage: string,
): ReturnType<typeof parseArgs<{ options: T; allowPositionals: true; args: string[] }>> {
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true });
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new BlockError('invalid', error.message.replace(/\. To specify.*$/s, ''), { hint: usage });
  }
}

/** A whole number of at least `least`. Errors: invalid, naming the option. */
export function wholeNumber(option: string, text: string, least: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(value) && value >= least) return value;
  throw new BlockError('invalid', `${option} needs a whole number of at least ${least}, not '${text}'`);
}

/** Colours by `--color`: where it says nothing, on terminals that do not ask to be without (no-color.org). */
export function wantsColour(choice: string | undefined, output: { isTTY?: boolean }): boolean {
  if (choice !== undefined && !['always', 'never', 'auto'].includes(choice))
    throw new BlockError('invalid', `--color takes always, never or auto, not '${choice}'`);
  if (choice === 'always' || choice === 'never') return choice === 'always';
  return output.isTTY === true && (process.env['NO_COLOR'] ?? '') === '';
}
