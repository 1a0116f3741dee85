import { formatConformance } from '../../../test/kit/conformance.js';
import { qedDriver } from './index.js';

const options = { 'cluster-size': 4096, 'table-size': 1 };
formatConformance({ name: 'qed', driver: qedDriver, unitBytes: 4096, runs: 5, options });
