import { nullDriver } from '../null-co/index.js';

/** As null-co; QEMU answers its requests by callbacks. */
export const nullAioDriver = nullDriver('null-aio');
