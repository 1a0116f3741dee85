import { TransmissionFlag } from '../../wire/nbd/constants.js';
import type { ListedExport } from '../../wire/nbd/client-handshake.js';
import { listExports } from '../../wire/nbd/list.js';
import type { NbdArguments } from './arguments.js';
import { Graph } from '../../block/graph.js';
import { tlsEnd, withHostname } from '../../block/objects/tls-end.js';
import type { Host, TlsEnd } from '../../host/host.js';
import { parseObject } from '../arguments/objects.js';
import { asCredentials } from './credentials.js';
import type { NbdProgram } from './main.js';

/** By bit, as qemu-nbd names them. */
const FLAG_NAMES: ReadonlyArray<[flag: number, name: string]> = [
  [TransmissionFlag.readOnly, 'readonly'],
  [TransmissionFlag.sendFlush, 'flush'],
  [TransmissionFlag.sendFua, 'fua'],
  [TransmissionFlag.rotational, 'rotational'],
  [TransmissionFlag.sendTrim, 'trim'],
  [TransmissionFlag.sendWriteZeroes, 'zeroes'],
  [TransmissionFlag.sendDf, 'df'],
  [TransmissionFlag.canMultiConn, 'multi'],
  [TransmissionFlag.sendResize, 'resize'],
  [TransmissionFlag.sendCache, 'cache'],
  [TransmissionFlag.sendFastZero, 'fast-zero'],
];

/** `--list`: as qemu-nbd prints it. Answers the exit status. */
export async function printExports(args: NbdArguments, { host, print }: NbdProgram): Promise<number> {
  const { address } = args;
  if (!address) return 1;
  const exports = await listExports(host, address, await tlsOf(args, host));
  print(`exports available: ${exports.length}\n`);
  for (const entry of exports) print(describe(entry));
  return 0;
}

async function tlsOf(args: NbdArguments, host: Host): Promise<TlsEnd | undefined> {
  const { tlsCreds, tlsHostname, address } = args;
  if (tlsCreds === undefined) return undefined;
  const graph = new Graph(host);
  for (const text of args.objects) await graph.objects.add(parseObject(text));
  const hostname = tlsHostname ?? (address?.type === 'inet' ? address.host : undefined);
  const end = asCredentials(() => tlsEnd(graph.objects, tlsCreds));
  return withHostname(end, hostname);
}

function describe({ name, description, info, contexts }: ListedExport): string {
  const lines = [` export: '${name}'`];
  if (description !== undefined && description !== '') lines.push(`  description: ${description}`);
  if (info) {
    const names = FLAG_NAMES.filter(([flag]) => Math.floor(info.flags / flag) % 2 === 1).map(
      ([, text]) => text,
    );
    lines.push(`  size:  ${info.lengthBytes}`);
    lines.push(`  flags: 0x${info.flags.toString(16)} ( ${names.join(' ')} )`);
    const { blockSize } = info;
    if (blockSize) {
      lines.push(`  min block: ${blockSize.minimum}`);
      lines.push(`  opt block: ${blockSize.preferred}`);
      lines.push(`  max block: ${blockSize.maximum}`);
    }
  }
  if (contexts.length > 0) {
    lines.push(`  available meta contexts: ${contexts.length}`);
    for (const context of contexts) lines.push(`   ${context}`);
  }
  return lines.map((line) => `${line}\n`).join('');
}
