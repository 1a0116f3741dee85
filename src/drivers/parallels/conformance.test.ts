import { formatConformance } from '../../../test/kit/conformance.js';
import { parallelsDriver } from './index.js';

const options = { 'cluster-size': 4096 };
formatConformance({
  name: 'parallels',
  driver: parallelsDriver,
  unitBytes: 4096,
  runs: 5,
  options,
  canGrow: false,
});
