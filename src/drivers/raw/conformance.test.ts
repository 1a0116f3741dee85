import { formatConformance } from '../../testing/conformance.js';
import { rawDriver } from './index.js';

formatConformance({ name: 'raw', driver: rawDriver, unitBytes: 4096 });
