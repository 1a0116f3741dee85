import { BlockError } from '../../base/error.js';
import type { Graph } from '../../block/graph.js';
import { Permission, withoutPermissions } from '../../block/permissions.js';
import { reopenKeeping } from '../../block/reopen.js';
import type { FlatOptions } from '../../schema/flat.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { CommandLine } from './arguments.js';
import { cacheOptions, type CacheMode } from './cache.js';
import { CommandFailure, type IoSession, UsageFailure } from './session.js';

/** reopen [(-r|-w)] [-c cache] [-o options]: what is not said stays as it is. */
export async function reopenCommand(session: IoSession, words: readonly string[]): Promise<boolean> {
  const line = new CommandLine('reopen', words, 'c:o:rw');
  line.expect(0);
  const { graph, backend } = session;
  if (!graph) throw new CommandFailure('reopen is not supported by livedisk');
  const mode = modeOf(line);
  const cache = cacheOf(line);
  const options = optionsOf(line, mode, cache);
  try {
    if (mode === true) await giveUpWriting(session, graph);
    await reopenKeeping(graph, backend.node, options);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw refusal(error.message);
  }
  if (cache) backend.writethrough = cache.writethrough;
  return true;
}

/** Read-only or not; undefined: as it is. */
function modeOf(line: CommandLine): boolean | undefined {
  if (line.values('r').length + line.values('w').length > 1)
    throw refusal('Only one -r/-w option may be given');
  if (line.has('r')) return true;
  return line.has('w') ? false : undefined;
}

function cacheOf(line: CommandLine): CacheMode | undefined {
  const name = line.value('c');
  if (name === undefined) return undefined;
  const cache = cacheOptions(name);
  if (cache) return cache;
  throw refusal(`Invalid cache option: ${name}`);
}

function optionsOf(
  line: CommandLine,
  readOnly: boolean | undefined,
  cache: CacheMode | undefined,
): FlatOptions {
  const lists = line.values('o');
  if (lists.length > 1) throw new UsageFailure();
  const options = parseImageOpts(lists[0] ?? '', { warn: () => undefined });
  if (readOnly !== undefined && options.has('read-only'))
    throw refusal("Cannot set both -r/-w and 'read-only'");
  if (cache && (options.has('cache.direct') || options.has('cache.no-flush')))
    throw refusal('Cannot set both -c and the cache options');
  return options.withOverrides({
    ...(readOnly !== undefined && { 'read-only': readOnly ? 'on' : 'off' }),
    ...(cache && {
      'cache.direct': cache.options.direct ? 'on' : 'off',
      'cache.no-flush': cache.options['no-flush'] ? 'on' : 'off',
    }),
  });
}

/** A disk of the exerciser's own asks to write again when a command does. */
async function giveUpWriting(session: IoSession, graph: Graph): Promise<void> {
  if (!session.ownsDisk) return;
  const { backend } = session;
  const perm = withoutPermissions(backend.perm, Permission.write | Permission.resize);
  await graph.transaction((transaction) => transaction.setPermissions(backend, perm, backend.shared));
}

function refusal(message: string): CommandFailure {
  return new CommandFailure(`qemu-io: ${message}`, true);
}
