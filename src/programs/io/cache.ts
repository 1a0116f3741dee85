import type { FileAio } from '../../block/open-context.js';

export interface CacheMode {
  /** The `cache` member of the protocol node's options. */
  options: { direct: boolean; 'no-flush': boolean };
  /** Every write is durable when it completes. */
  writethrough: boolean;
}

/** Whether that is a way to read and write files. */
export function isFileAio(mode: string): mode is FileAio {
  return mode === 'threads' || mode === 'native' || mode === 'io_uring';
}

/** What a cache mode of QEMU's command lines stands for; undefined when there is no such mode. */
export function cacheOptions(mode: string): CacheMode | undefined {
  const make = (direct: boolean, noFlush: boolean, writethrough: boolean): CacheMode => ({
    options: { direct, 'no-flush': noFlush },
    writethrough,
  });
  switch (mode) {
    case 'none':
    case 'off':
      return make(true, false, false);
    case 'directsync':
      return make(true, false, true);
    case 'writeback':
      return make(false, false, false);
    case 'unsafe':
      return make(false, true, false);
    case 'writethrough':
      return make(false, false, true);
    default:
      return undefined;
  }
}
