import { formatConformance } from '../../../test/kit/conformance.js';
import { rawDriver } from './index.js';

formatConformance({ name: 'raw', driver: rawDriver, unitBytes: 4096 });
