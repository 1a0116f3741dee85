import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';
import { parseMonitorAddress } from '../arguments/monitor-address.js';
import { USAGE } from './help.js';

export interface ShellOptions {
  address: SocketAddress;
  pretty: boolean;
  verbose: boolean;
  human: boolean;
  negotiate: boolean;
  /** A job to wait for after all else. */
  waitFor: string | undefined;
  /** One command in place of those that are typed; empty without one. */
  words: readonly string[];
}

const LONG_OPTIONS: Readonly<Record<string, string>> = {
  '--pretty': 'p',
  '--verbose': 'v',
  '--hmp': 'H',
  '--skip-negotiation': 'N',
  '--wait': 'w',
};

/** Options may stand before and after the socket, not after a command's name. Errors: invalid. */
export function parseOptions(args: readonly string[]): ShellOptions {
  const letters = new Set<string>();
  let waitFor: string | undefined;
  let socket: string | undefined;
  let at = 0;
  for (; at < args.length; at++) {
    const arg = args[at] ?? '';
    if (!arg.startsWith('-')) {
      if (socket !== undefined) break;
      socket = arg;
      continue;
    }
    for (const letter of lettersOf(arg)) {
      letters.add(letter);
      if (letter === 'w') waitFor = arg.startsWith('--wait=') ? arg.slice('--wait='.length) : args[++at];
    }
    if (letters.has('w') && waitFor === undefined) throw wrongUse('--wait needs the name of a job');
  }
  if (socket === undefined) throw wrongUse('one SOCKET is needed');
  return {
    address: parseMonitorAddress(socket),
    pretty: letters.has('p'),
    verbose: letters.has('v'),
    human: letters.has('H'),
    negotiate: !letters.has('N'),
    waitFor,
    words: args.slice(at),
  };
}

function lettersOf(arg: string): string {
  const long = arg.replace(/^(--wait)=.*$/s, '$1');
  const letters = arg.startsWith('--') ? LONG_OPTIONS[long] : arg.slice(1);
  if (letters === undefined || !/^[pvHNw]+$/.test(letters)) throw wrongUse(`unknown option '${arg}'`);
  return letters;
}

function wrongUse(message: string): BlockError {
  return new BlockError('invalid', message, { hint: USAGE });
}
