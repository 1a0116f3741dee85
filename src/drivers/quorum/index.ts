import { BlockError } from '../../base/error.js';
import type { DriverDescription, Settings } from '../../block/driver.js';
import { commonPermissions, Permission, unitePermissions } from '../../block/permissions.js';
import { QUORUM_OPTIONS } from '../../schema/blockdev-options.js';
import { QuorumNode, type QuorumSettings } from './node.js';

/** Writes to several children, and shows what most of them say. */
export const quorumDriver: DriverDescription<typeof QUORUM_OPTIONS> = {
  name: 'quorum',
  kind: 'format',
  opensWithoutWriting: true,
  holdsCopies: true,
  options: QUORUM_OPTIONS,
  identityOptions: ['vote-threshold', 'blkverify', 'rewrite-corrupted', 'read-pattern'],

  checkOptions: (settings, roles) => void checked(settings, roles.length),

  async open(context, settings) {
    return new QuorumNode(context, checked(settings, context.listChildren('children').length));
  },

  /** A change of one child alone would make it differ from the others. */
  childPermissions: (_role, users, _readOnly, settings) => ({
    perm: unitePermissions(users.perm, settings['rewrite-corrupted'] ? Permission.write : 0),
    shared: commonPermissions(users.shared, Permission.consistentRead | Permission.writeUnchanged),
  }),
};

/** Errors: invalid, in QEMU's words. */
function checked(settings: Settings<typeof QUORUM_OPTIONS>, children: number): QuorumSettings {
  const invalid = (text: string): BlockError => new BlockError('invalid', text);
  if (children < 1) throw invalid('Number of provided children must be 1 or more');
  const { 'vote-threshold': threshold, blkverify, 'read-pattern': pattern } = settings;
  if (threshold < 1) throw invalid("Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > children) throw invalid('threshold may not exceed children count');
  const readsFirst = pattern === 'fifo';
  if (readsFirst)
    return { threshold, readsFirst, comparesTwo: false, rewritesCorrupted: settings['rewrite-corrupted'] };
  if (blkverify && (children !== 2 || threshold !== 2))
    throw invalid('blkverify=on can only be set if there are exactly two files and vote-threshold is 2');
  if (blkverify && settings['rewrite-corrupted'])
    throw invalid('rewrite-corrupted=on cannot be used with blkverify=on');
  return { threshold, readsFirst, comparesTwo: blkverify, rewritesCorrupted: settings['rewrite-corrupted'] };
}
