import { BlockError } from '../base/error.js';

/** What `HOST:PORT[,to=N][,ipv4[=on|off]]...` says, with the members of QAPI's InetSocketAddress. */
export interface InetText {
  readonly host: string;
  readonly port: string;
  readonly to?: number;
  readonly ipv4?: boolean;
  readonly ipv6?: boolean;
  readonly 'keep-alive'?: boolean;
}

const FLAGS = ['ipv4', 'ipv6', 'keep-alive', 'mptcp'] as const;

/** An address as QEMU's programs read it where it is one word; a host of IPv6 in brackets. Errors: invalid, in QEMU's words. */
export function parseInet(text: string): InetText {
  const { pattern, what } = formOf(text);
  const [whole, host, port] = pattern.exec(text) ?? [];
  if (whole === undefined || host === undefined || port === undefined)
    throw new BlockError('invalid', `error parsing ${what} '${text}'`);
  return { host, port, ...optionsOf(text.slice(whole.length)) };
}

function formOf(text: string): { pattern: RegExp; what: string } {
  if (text.startsWith(':')) return { pattern: /^():([^,]{1,32})/, what: 'port in address' };
  if (text.startsWith('[')) return { pattern: /^\[([^\]]{1,64})\]:([^,]{1,32})/, what: 'IPv6 address' };
  return { pattern: /^([^:]{1,64}):([^,]{1,32})/, what: 'address' };
}

/** What else is there is not looked at, as in QEMU. */
function optionsOf(text: string): Omit<InetText, 'host' | 'port'> {
  const options: { [name: string]: number | boolean } = {};
  const to = after(text, ',to=');
  if (to !== undefined) {
    const [, number] = /^\s*([+-]?\d+)(?:,|$)/.exec(to) ?? [];
    if (number === undefined) throw new BlockError('invalid', 'error parsing to= argument');
    options['to'] = Number(number);
  }
  for (const name of FLAGS) {
    const rest = after(text, `,${name}`);
    if (rest === undefined) continue;
    const [, value] = /^(|=on|=off)(?:,|$)/.exec(rest) ?? [];
    if (value === undefined) throw new BlockError('invalid', `error parsing '${name}' flag '${rest}'`);
    options[name] = value !== '=off';
  }
  return options;
}

function after(text: string, part: string): string | undefined {
  const at = text.indexOf(part);
  return at < 0 ? undefined : text.slice(at + part.length);
}
