import { KiB, MiB } from '../../base/limits.js';
import { formatConformance } from '../../../test/kit/conformance.js';
import { vhdxDriver } from './index.js';

const options = { 'block-size': MiB };
formatConformance({
  name: 'vhdx',
  driver: vhdxDriver,
  unitBytes: 64 * KiB,
  sizeBytes: 2 * MiB + 7 * 512,
  runs: 4,
  options,
  canGrow: false,
});
