import { formatConformance } from '../../../test/kit/conformance.js';
import { vmdkDriver } from './index.js';

const vmdk = { driver: vmdkDriver, unitBytes: 65536, canGrow: false };

formatConformance({ ...vmdk, name: 'vmdk', runs: 5, options: { 'zeroed-grain': true } });
