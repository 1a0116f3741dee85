import type { DriverDescription } from '../../block/driver.js';
import { THROTTLE_OPTIONS } from '../../schema/blockdev-options.js';
import { ThrottleNode } from './node.js';

/** Lets requests through at the pace of a throttle group. */
export const throttleDriver: DriverDescription<typeof THROTTLE_OPTIONS> = {
  name: 'throttle',
  kind: 'filter',
  compresses: true,
  options: THROTTLE_OPTIONS,
  identityOptions: ['throttle-group'],
  mutableOptions: ['throttle-group'],

  async open(context, settings) {
    const group = context.objects.throttleGroup(settings['throttle-group']);
    return new ThrottleNode(() => context.child('file'), group, context.objects);
  },
};
