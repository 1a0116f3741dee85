import type { ImageCheck } from '../../block/driver.js';

/** Of a check that has found nothing yet. */
export function nothingFound(totalClusters = 0): ImageCheck {
  return {
    checkErrors: 0,
    corruptions: 0,
    leaks: 0,
    corruptionsFixed: 0,
    leaksFixed: 0,
    totalClusters,
    allocatedClusters: 0,
    fragmentedClusters: 0,
    compressedClusters: 0,
    imageEndOffset: 0,
  };
}
