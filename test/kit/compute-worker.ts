import { serveCompute } from '../../src/host/compute-server.js';
import { add, crash, hold, prepared, refuse } from './compute-functions.js';

serveCompute([add, refuse, hold, crash, prepared]);
