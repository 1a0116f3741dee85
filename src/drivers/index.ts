import type { DriverDescription } from '../block/driver.js';
import { blkdebugDriver } from './blkdebug/index.js';
import { blklogwritesDriver } from './blklogwrites/index.js';
import { blkverifyDriver } from './blkverify/index.js';
import { bochsDriver } from './bochs/index.js';
import { cloopDriver } from './cloop/index.js';
import { compressDriver } from './compress/index.js';
import { copyBeforeWriteDriver } from './copy-before-write/index.js';
import { copyOnReadDriver } from './copy-on-read/index.js';
import { dmgDriver } from './dmg/index.js';
import { fileDriver } from './file/index.js';
import { hostDeviceDriver } from './host-device/index.js';
import { httpDriver, httpsDriver } from './http/index.js';
import { luksDriver } from './luks/index.js';
import { nbdDriver } from './nbd/index.js';
import { nullAioDriver } from './null-aio/index.js';
import { nullCoDriver } from './null-co/index.js';
import { parallelsDriver } from './parallels/index.js';
import { preallocateDriver } from './preallocate/index.js';
import { qcow2Driver } from './qcow2/driver.js';
import { qedDriver } from './qed/index.js';
import { quorumDriver } from './quorum/index.js';
import { rawDriver } from './raw/index.js';
import { snapshotAccessDriver } from './snapshot-access/index.js';
import { sshDriver } from './ssh/index.js';
import { throttleDriver } from './throttle/index.js';
import { vdiDriver } from './vdi/index.js';
import { vhdxDriver } from './vhdx/index.js';
import { vmdkDriver } from './vmdk/index.js';
import { vpcDriver } from './vpc/index.js';

/**
 * Every driver that users may name; of those that are equally sure of an image, the first is taken. Filters that jobs put
 * in are the jobs' own.
 */
export const allDrivers: readonly DriverDescription[] = [
  fileDriver,
  hostDeviceDriver,
  nbdDriver,
  httpDriver,
  httpsDriver,
  sshDriver,
  nullCoDriver,
  nullAioDriver,
  rawDriver,
  qcow2Driver,
  blkdebugDriver,
  throttleDriver,
  copyOnReadDriver,
  compressDriver,
  blkverifyDriver,
  bochsDriver,
  dmgDriver,
  cloopDriver,
  luksDriver,
  parallelsDriver,
  qedDriver,
  vdiDriver,
  vhdxDriver,
  vmdkDriver,
  vpcDriver,
  copyBeforeWriteDriver,
  snapshotAccessDriver,
  quorumDriver,
  preallocateDriver,
  blklogwritesDriver,
];
