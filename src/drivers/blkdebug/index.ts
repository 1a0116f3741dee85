import { BlockError, errnoError, errnoOf } from '../../base/error.js';
import type { DriverDescription } from '../../block/driver.js';
import type { Node } from '../../block/node.js';
import { readWholeFile } from '../../block/objects/whole-file.js';
import { unitePermissions, withoutPermissions } from '../../block/permissions.js';
import type { Host } from '../../host/host.js';
import { BLKDEBUG_OPTIONS } from '../../schema/blockdev-options.js';
import { type ConfiguredRules, parseRules } from './config.js';
import { BlkdebugNode } from './node.js';
import { blkdebugOptions, permissionsOf } from './options.js';

export { BlkdebugNode } from './node.js';

/** The blkdebug that hears what `node` announces: itself, or the first one below it in the role of its storage. */
export function findBlkdebug(node: Node): BlkdebugNode | undefined {
  for (let at: Node | undefined = node; at; at = at.filtered?.node) {
    if (at.isOpen && at.instance instanceof BlkdebugNode) return at.instance;
  }
  return undefined;
}

/** As QEMU has it, how a node gets on with its neighbours is not what it is. */
const IDENTITY_OPTIONS = Object.keys(BLKDEBUG_OPTIONS.members).filter(
  (key) => !/-child-perms$|^x-/.test(key),
);

/** Injects errors, delays and stops into the requests of the node above. */
export const blkdebugDriver: DriverDescription<typeof BLKDEBUG_OPTIONS> = {
  name: 'blkdebug',
  kind: 'filter',
  options: BLKDEBUG_OPTIONS,
  identityOptions: IDENTITY_OPTIONS,

  async open(context, settings) {
    const { config } = settings;
    // Rules that another process goes by may have come from another file than lies there by now.
    const file =
      config === undefined || context.memory ? NO_RULES : parseRules(await readRules(context.host, config));
    return new BlkdebugNode(context, blkdebugOptions(settings, file));
  },

  childPermissions: (_role, users, _readOnly, settings) => ({
    perm: unitePermissions(users.perm, permissionsOf(settings['take-child-perms'])),
    shared: withoutPermissions(users.shared, permissionsOf(settings['unshare-child-perms'])),
  }),

  filename(options, image) {
    const { config = '' } = options;
    const isPlain =
      image !== undefined && !IDENTITY_OPTIONS.some((key) => key !== 'config' && key in options);
    return isPlain ? `blkdebug:${config as string}:${image}` : undefined;
  },

  parseFilename(filename) {
    if (!filename.startsWith('blkdebug:')) return undefined;
    const [, config = '', image] = /^blkdebug:([^:]*):(.*)$/s.exec(filename) ?? [];
    if (image === undefined)
      throw new BlockError('invalid', 'blkdebug requires both config file and image path');
    return { ...(config !== '' && { config }), image: { filename: image } };
  },
};

const NO_RULES: ConfiguredRules = { inject: [], setState: [] };

async function readRules(host: Host, path: string): Promise<string> {
  try {
    return (await readWholeFile(host, path)).toString();
  } catch (error) {
    throw errnoError(errnoOf(error), 'Could not read blkdebug config file', { path, cause: error });
  }
}
