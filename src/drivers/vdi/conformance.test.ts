import { KiB, MiB } from '../../base/limits.js';
import { formatConformance } from '../../../test/kit/conformance.js';
import { vdiDriver } from './index.js';

formatConformance({
  name: 'vdi',
  driver: vdiDriver,
  unitBytes: 64 * KiB,
  sizeBytes: 2 * MiB + 7 * 512,
  runs: 4,
  canGrow: false,
});
