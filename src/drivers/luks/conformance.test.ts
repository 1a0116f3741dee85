import { createImage } from '../../block/create.js';
import { formatConformance } from '../../../test/kit/conformance.js';
import { luksDriver } from './index.js';

formatConformance({
  name: 'luks',
  driver: luksDriver,
  unitBytes: 4096,
  runs: 1,
  // A new disk is not zeroes, nor is what one grows by. does not read as zeroes.
  canGrow: false,
  create: async (bed, sizeBytes) => {
    if (!bed.graph.objects.find('s'))
      await bed.graph.objects.add({ 'qom-type': 'secret', id: 's', data: 'password' });
    const filename = bed.newPath('luks');
    // What is unlocked fastest.
    const cipher = { 'cipher-alg': 'aes-128', 'cipher-mode': 'cbc' };
    const options = { 'key-secret': 's', 'iter-time': 0, ...cipher };
    await createImage(bed.opener, filename, 'luks', { sizeBytes, options });
    const node = { driver: 'luks', file: { driver: 'file', filename }, 'key-secret': 's' };
    const disk = await bed.open(node);
    await disk.write(0, Buffer.alloc(sizeBytes));
    await disk.close();
    return node;
  },
});
