import { protocolConformance } from '../../../test/kit/conformance.js';
import { nullCoDriver } from './index.js';

protocolConformance({
  name: 'null-co',
  drivers: [nullCoDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: false,
  keepsNothing: true,
  create: (_bed, size) => Promise.resolve({ driver: 'null-co', size, 'read-zeroes': true }),
});

protocolConformance({
  name: 'null-co with latency',
  drivers: [nullCoDriver],
  shape: { sizeBytes: 5 * 4096 + 512, unitBytes: 4096 },
  canGrow: false,
  keepsNothing: true,
  create: (_bed, size) =>
    Promise.resolve({ driver: 'null-co', size, 'read-zeroes': true, 'latency-ns': 1000 }),
});
