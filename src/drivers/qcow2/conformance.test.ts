import { formatConformance } from '../../../test/kit/conformance.js';
import { qcow2Driver } from './driver.js';

formatConformance({ name: 'qcow2', driver: qcow2Driver, unitBytes: 65536, runs: 10 });
