import type { NodeOptions } from '../../block/driver.js';
import { filterConformance } from '../../../test/kit/conformance.js';
import type { TestBed } from '../../../test/kit/test-disk.js';
import { throttleDriver } from './index.js';

/** Limits that hold requests back now and then, and not for long. */
async function throttled(file: NodeOptions, { graph }: TestBed): Promise<NodeOptions> {
  const limits = { 'iops-total': 20_000, 'bps-write': 200_000_000 };
  if (!graph.objects.find('limits'))
    await graph.objects.add({ 'qom-type': 'throttle-group', id: 'limits', limits });
  return { driver: 'throttle', 'throttle-group': 'limits', file };
}

filterConformance('throttle', [throttleDriver], throttled);
