import { BlockError } from '../../base/error.js';
import type { Json } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { Permission, hasPermission } from '../../block/permissions.js';
import type { BlockStatus } from '../../block/request.js';
import { PREALLOCATION_MODES, resizeImage } from '../../block/resize.js';
import { CommandLine } from './arguments.js';
import { formatBytes, parseBytes } from './numbers.js';
import { CommandFailure, type IoSession, requestError } from './session.js';

const SECTOR_BYTES = 512;

/** alloc offset [count]: how much of a range the disk's own layer decides. */
export async function allocCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const node = session.backend.node.skipFilters();
  const offset = parseBytes(words[0] ?? '');
  const wanted = words[1] === undefined ? SECTOR_BYTES : parseBytes(words[1]);
  const count = Math.max(0, Math.min(wanted, session.backend.lengthBytes - offset));
  let allocated = 0;
  for (let done = 0; done < count;) {
    const status = await statusAt(node, offset + done, count - done, 'is_allocated failed');
    if (status.allocated) allocated += status.lengthBytes;
    done += status.lengthBytes;
  }
  session.output.print(`${allocated}/${count} bytes allocated at offset ${formatBytes(offset)}\n`);
  return true;
}

/** map: stretches that the disk's own layer decides, and others, in turn. */
export async function mapCommand(session: IoSession): Promise<boolean> {
  const node = session.backend.node.skipFilters();
  const end = session.backend.lengthBytes;
  for (let at = 0; at < end;) {
    const { allocated } = await mapStatus(node, at, end - at);
    let stop = at;
    while (stop < end) {
      const status = await mapStatus(node, stop, end - stop);
      if (status.allocated !== allocated) break;
      stop += status.lengthBytes;
    }
    const length = stop - at;
    session.output.print(
      `${formatBytes(length)} (0x${length.toString(16)}) bytes ${allocated ? '    ' : 'not '}allocated ` +
        `at offset ${formatBytes(at)} (0x${at.toString(16)})\n`,
    );
    at = stop;
  }
  return true;
}

function mapStatus(node: Node, offset: number, lengthBytes: number): Promise<BlockStatus> {
  return statusAt(node, offset, lengthBytes, 'qemu-io: Failed to get allocation status', true);
}

async function statusAt(
  node: Node,
  offset: number,
  lengthBytes: number,
  failure: string,
  onError = false,
): Promise<BlockStatus> {
  try {
    return await node.io.status(offset, lengthBytes);
  } catch (error) {
    throw new CommandFailure(`${failure}: ${requestError(error)}`, onError);
  }
}

export function lengthCommand(session: IoSession): boolean {
  session.output.print(`${formatBytes(session.backend.lengthBytes)}\n`);
  return true;
}

/** info: the format, its unit and what is special about it. */
export function infoCommand(session: IoSession): boolean {
  const node = session.backend.node.skipImplicitFilters();
  const info = node.instance.info();
  const cluster = info.clusterSizeBytes ?? 0;
  session.output.print(
    `format name: ${node.driver.name}\n` +
      `cluster size: ${formatBytes(cluster)}\n` +
      `vm state offset: ${formatBytes(info.vmStateOffset ?? 0)}\n` +
      formatSpecificText(info.formatSpecific),
  );
  return true;
}

/** "Format specific information:" and a line for each member; '' when there are none. */
export function formatSpecificText(formatSpecific: { [key: string]: Json } | undefined): string {
  const data = formatSpecific?.['data'];
  if (typeof data !== 'object' || data === null || Array.isArray(data)) return '';
  const lines = Object.entries(data).map(([key, value]) => memberText(key, value, 1));
  return lines.length === 0 ? '' : `Format specific information:\n${lines.join('')}`;
}

function memberText(key: string, value: Json, depth: number): string {
  const head = `${'    '.repeat(depth)}${key.replaceAll('-', ' ')}:`;
  if (value === null) return `${head} null\n`;
  if (typeof value !== 'object') return `${head} ${String(value)}\n`;
  const members = Array.isArray(value)
    ? value.map((item, index) => [`[${index}]`, item] as const)
    : Object.entries(value);
  return `${head}\n${members.map(([name, item]) => memberText(name, item, depth + 1)).join('')}`;
}

/** truncate [-m prealloc_mode] off */
export async function truncateCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('truncate', words, 'm:');
  const mode = line.value('m') ?? 'off';
  const preallocation = PREALLOCATION_MODES.find((one) => one === mode);
  if (preallocation === undefined)
    throw new CommandFailure(`qemu-io: Invalid preallocation mode '${mode}'`, true);
  line.expect(1);
  const lengthBytes = line.bytes(0);
  if (!hasPermission(session.backend.perm, Permission.resize))
    throw new CommandFailure('truncate: this disk may not be resized here', true);
  try {
    await resizeImage(session.backend, lengthBytes, preallocation);
  } catch (error) {
    if (error instanceof BlockError) throw new CommandFailure(`qemu-io: ${error.message}`, true);
    throw error;
  }
  return true;
}

export async function flushCommand(session: IoSession): Promise<boolean> {
  try {
    await session.backend.flush();
    return true;
  } catch (error) {
    throw new CommandFailure(`flush failed: ${requestError(error)}`);
  }
}

/** sleep milliseconds */
export async function sleepCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const [text = ''] = words;
  if (!/^(0[xX][0-9a-fA-F]+|\d+)$/.test(text)) throw new CommandFailure(`${text} is not a valid number`);
  await (session.host ?? session.backend).clock.sleep(Number(text));
  return true;
}
