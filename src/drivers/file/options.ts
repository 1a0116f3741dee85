import { BlockError } from '../../base/error.js';
import type { NodeOptions } from '../../block/driver.js';
import { booleanOption, stringOption } from '../../block/options.js';

export interface FileOptions {
  filename: string;
  /** O_DIRECT. */
  direct: boolean;
  /** Flushes are not sent on: for images that need not outlive a crash. */
  noFlush: boolean;
  locking: boolean;
  forceShare: boolean;
  autoReadOnly: boolean;
  /** Discards and the permission to unmap zeroed ranges are ignored. */
  ignoresDiscard: boolean;
}

/** Errors: kind invalid or unsupported, in QEMU's words. */
export function parseFileOptions(options: NodeOptions): FileOptions {
  const filename = stringOption(options, 'filename');
  if (filename === undefined) throw new BlockError('invalid', "The 'file' block driver requires a file name");
  const cache = options['cache'];
  const flags = typeof cache === 'object' && cache !== null && !Array.isArray(cache) ? cache : {};
  const direct = booleanOption(flags, 'direct') ?? false;
  checkAio(stringOption(options, 'aio') ?? 'threads', direct);
  return {
    filename,
    direct,
    noFlush: booleanOption(flags, 'no-flush') ?? false,
    locking: parseLocking(stringOption(options, 'locking') ?? 'auto'),
    forceShare: booleanOption(options, 'force-share') ?? false,
    autoReadOnly: booleanOption(options, 'auto-read-only') ?? false,
    ignoresDiscard: parseDiscard(stringOption(options, 'discard') ?? 'unmap'),
  };
}

function checkAio(aio: string, direct: boolean): void {
  if (aio === 'threads') return;
  if (aio === 'native' && !direct) {
    throw new BlockError(
      'invalid',
      'aio=native was specified, but it requires cache.direct=on, which was not specified.',
    );
  }
  if (aio !== 'native' && aio !== 'io_uring') throw invalidValue(aio);
  throw new BlockError('unsupported', `aio=${aio} is not supported by livedisk; use 'threads'`);
}

/** 'auto' locks where OFD locks exist, which is wherever livedisk runs. */
function parseLocking(value: string): boolean {
  if (value !== 'auto' && value !== 'on' && value !== 'off') throw invalidValue(value);
  return value !== 'off';
}

/** Answers whether discards are ignored. */
function parseDiscard(value: string): boolean {
  if (value === 'ignore' || value === 'off') return true;
  if (value === 'unmap' || value === 'on') return false;
  throw new BlockError('invalid', 'Invalid discard option');
}

function invalidValue(value: string): BlockError {
  return new BlockError('invalid', `invalid parameter value: ${value}`);
}
