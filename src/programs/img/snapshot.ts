import { errnoNumber } from '../../base/errno-numbers.js';
import { BlockError, errnoOf, errnoText } from '../../base/error.js';
import type { BlockBackend } from '../../block/backend.js';
import {
  findByIdOrName,
  findByName,
  goToSnapshot,
  snapshotNow,
  snapshotsOf,
} from '../../block/internal-snapshots.js';
import { snapshotsText } from '../../monitor/image-text.js';
import { Arguments, options } from './arguments.js';
import { explain, type Tool, ToolFailure, UsageError } from './tool.js';

const ACTIONS = ['l', 'a', 'c', 'd'] as const;
type Action = (typeof ACTIONS)[number];

/** snapshot [-U] [--image-opts] [-q] [-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT] FILE */
export async function snapshotCommand(tool: Tool, words: readonly string[]): Promise<number> {
  const taken = options('l', 'a:', 'c:', 'd:', 'q', 'U|force-share', '|image-opts');
  let actions = 0;
  const checkAlone = (): void => {
    if (++actions > 1) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
  };
  const checks = Object.fromEntries(ACTIONS.map((action) => [action, checkAlone]));
  const args = new Arguments(words, taken, checks);
  const asked = ACTIONS.flatMap((action) => args.values(action).map((name) => ({ action, name })));
  const filename = args.image();
  // Without a word about what to do, the image is opened to be written, and nothing is done.
  const { action, name } = asked[0] ?? { action: undefined, name: '' };
  const isReader = action === 'l';
  const backend = await tool.open(filename, {
    imageOpts: args.has('image-opts'),
    forceShare: args.has('force-share'),
    write: !isReader,
    resize: action === 'a',
  });
  if (action) await act(tool, backend, action, name);
  await tool.close(backend);
  return 0;
}

async function act(tool: Tool, { node }: BlockBackend, action: Action, name: string): Promise<void> {
  const snapshots = snapshotsOf(node);
  switch (action) {
    case 'l':
      return tool.out.print(snapshotsText((snapshots?.list ?? []).map(({ info }) => info)));
    case 'c':
      return take(tool, name, snapshots);
    case 'a':
      return explained(`Could not apply snapshot '${name}': `, async () => {
        const found = findByIdOrName(node, name);
        if (snapshots && !found)
          throw new BlockError('not-found', 'Failed to load snapshot: No such file or directory');
        await goToSnapshot(node, found?.id ?? '');
      });
    case 'd':
      return explained(`Could not delete snapshot '${name}': `, async () => {
        const found = findByName(node, name);
        if (!snapshots || !found) throw new BlockError('not-found', 'snapshot not found');
        await snapshots.delete(found.id);
      });
  }
}

async function take(tool: Tool, name: string, snapshots: ReturnType<typeof snapshotsOf>): Promise<void> {
  const refused = (errno: string): ToolFailure =>
    new ToolFailure(`Could not create snapshot '${name}': ${errorNumberText(errno)}`);
  if (!snapshots) throw refused('ENOTSUP');
  try {
    // No guest runs.
    await snapshots.take({ ...snapshotNow(tool.host.clock, name), icount: 0n });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw refused(errnoOf(error));
  }
}

/** "-28 (No space left on device)". */
function errorNumberText(errno: string): string {
  return `${-errnoNumber(errno)} (${errnoText(errno)})`;
}

async function explained(prefix: string, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    throw explain(error, prefix);
  }
}
