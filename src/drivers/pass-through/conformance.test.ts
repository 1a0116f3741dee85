import { filterConformance } from '../../testing/conformance.js';
import { jobFilterDrivers } from '../../testing/job-filters.js';

for (const driver of jobFilterDrivers)
  filterConformance(driver.name, [driver], (file) => ({ driver: driver.name, file }));
