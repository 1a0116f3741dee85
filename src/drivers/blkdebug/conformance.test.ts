import { filterConformance } from '../../../test/kit/conformance.js';
import { blkdebugDriver } from './index.js';

filterConformance('blkdebug', [blkdebugDriver], (image) => ({ driver: 'blkdebug', image }));

filterConformance('blkdebug with alignment and limits', [blkdebugDriver], (image) => ({
  driver: 'blkdebug',
  image,
  align: 512,
  'max-transfer': 1024,
  'max-write-zero': 2048,
  'max-discard': 512,
}));
