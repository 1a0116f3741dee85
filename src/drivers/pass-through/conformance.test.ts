import { filterConformance } from '../../../test/kit/conformance.js';
import { jobFilterDrivers } from '../../../test/kit/job-filters.js';

for (const driver of jobFilterDrivers)
  filterConformance(driver.name, [driver], (file) => ({ driver: driver.name, file }));
