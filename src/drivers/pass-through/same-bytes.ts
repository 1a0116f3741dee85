import type { RangeLock } from '../../block/range-lock.js';
import type { IoRequest } from '../../block/request.js';

/**
 * A write that goes to several children: `write` gets bytes that change no more, alone in their range, and once it has begun
 * it is seen through everywhere. Errors: those of `write`; ECANCELED before it began.
 */
export async function writeSameBytes(
  ranges: RangeLock,
  {
    request,
    from,
    lengthBytes,
    offset,
  }: { request: IoRequest; from: number; lengthBytes: number; offset: number },
  write: (bytes: Uint8Array) => Promise<void>,
): Promise<void> {
  const { generation } = request;
  await request.stabilise();
  request.assertIs(generation);
  const bytes = request.gather(from, lengthBytes);
  const release = await ranges.lockExclusive(offset, lengthBytes, request.signal);
  try {
    request.assertIs(generation);
    request.begin();
    await write(bytes);
    request.assertIs(generation);
  } finally {
    release();
  }
}
