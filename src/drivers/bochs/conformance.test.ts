import { readOnlyConformance } from '../../../test/kit/read-only-conformance.js';
import { READ_ONLY_FORMATS } from '../../../test/kit/read-only-formats.js';
import { bochsDriver } from './index.js';

for (const format of READ_ONLY_FORMATS) if (format.driver === bochsDriver) readOnlyConformance(format);
