import { filterConformance } from '../../../test/kit/conformance.js';
import { copyOnReadDriver } from './index.js';

// By another name than the filter of a job, below which the suite runs too.
const driver = { ...copyOnReadDriver, name: 'copies-on-read' };
filterConformance('copy-on-read', [driver], (file) => ({ driver: driver.name, file }));
