import type { Json } from '../../block/driver.js';
import type { LuksHeader } from './luks-header.js';
import { STRIPES } from './luks-header.js';

/** QAPI's QCryptoBlockInfoLUKS, in the order in which QEMU prints it. `format`: of what is encrypted in several ways. */
export function luksInfo(header: LuksHeader, format?: string): { [key: string]: Json } {
  const { cipher } = header;
  return {
    'ivgen-alg': cipher.generator,
    'hash-alg': header.hash,
    'cipher-alg': `aes-${cipher.aesKeyBytes * 8}`,
    uuid: header.uuid,
    ...(cipher.generator === 'essiv' && { 'ivgen-hash-alg': cipher.generatorHash ?? '' }),
    ...(format !== undefined && { format }),
    'cipher-mode': cipher.mode,
    slots: header.slots.map(({ isActive, iterations, keyOffset }) => ({
      active: isActive,
      ...(isActive && { iters: iterations }),
      'key-offset': keyOffset,
      ...(isActive && { stripes: STRIPES }),
    })),
    'payload-offset': header.payloadOffset,
    'master-key-iters': header.iterations,
  };
}
