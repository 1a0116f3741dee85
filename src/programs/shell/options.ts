import { BlockError } from '../../base/error.js';
import type { SocketAddress } from '../../host/host.js';
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
    address: parseAddress(socket),
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

function parseAddress(text: string): SocketAddress {
  if (text.startsWith('unix:')) return { type: 'unix', path: text.slice('unix:'.length) };
  const match = /^(?:tcp:)?(?:\[([^\]]*)\]|([^/:[\]]*)):(\d+)$/.exec(text);
  if (!match) return { type: 'unix', path: text };
  const port = Number(match[3]);
  if (port < 1 || port > 65535) throw new BlockError('invalid', `'${text}' has no port in 1..65535`);
  return { type: 'inet', host: match[1] ?? match[2] ?? '', port };
}
