import type { ChildIo, DriverDescription, Settings } from '../../block/driver.js';
import { commonPermissions, Permission, unitePermissions } from '../../block/permissions.js';
import { BLKLOGWRITES_OPTIONS } from '../../schema/blockdev-options.js';
import { DEFAULT_SECTOR_BYTES, endOfLog, invalid, readSuperblock, sectorBytesAreValid } from './format.js';
import { BlklogwritesNode, type LogPlace } from './node.js';

/** Keeps what is changed in a log, in the format of Linux's dm-log-writes. */
export const blklogwritesDriver: DriverDescription<typeof BLKLOGWRITES_OPTIONS> = {
  name: 'blklogwrites',
  kind: 'filter',
  options: BLKLOGWRITES_OPTIONS,
  identityOptions: ['log-sector-size'],

  /** The file's name would open the file alone. */
  filename: () => undefined,

  async open(context, settings) {
    const log = (): ChildIo => context.child('log');
    return new BlklogwritesNode(
      () => context.child('file'),
      log,
      await placeOf(log(), settings),
      context.memory,
    );
  },

  childPermissions(role, users, readOnly) {
    if (role !== 'log') return undefined;
    const own = readOnly ? Permission.consistentRead : WRITING;
    return {
      perm: unitePermissions(users.perm, own),
      shared: commonPermissions(users.shared, Permission.consistentRead | Permission.writeUnchanged),
    };
  },
};

const WRITING = Permission.consistentRead | Permission.write | Permission.resize;

/** Errors: invalid, in QEMU's words. */
async function placeOf(log: ChildIo, settings: Settings<typeof BLKLOGWRITES_OPTIONS>): Promise<LogPlace> {
  const { 'log-sector-size': asked, 'log-append': appends } = settings;
  if (appends && asked !== undefined) throw invalid('log-append and log-sector-size are mutually exclusive');
  const given = settings['log-super-update-interval'];
  const sectorBytes = asked ?? DEFAULT_SECTOR_BYTES;
  if (!sectorBytesAreValid(sectorBytes)) throw invalid(`Invalid log sector size ${sectorBytes}`);
  const fresh = { sectorBytes, entries: 0, end: sectorBytes };
  const found = appends && log.lengthBytes > 0 ? await readSuperblock(log) : undefined;
  const place = found ? { ...found, end: await endOfLog(log, found) } : fresh;
  if (given === 0) throw invalid(`Invalid log superblock update interval ${given}`);
  return { ...place, updateInterval: Number(given) };
}
