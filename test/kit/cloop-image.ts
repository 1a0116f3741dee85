import { deflateSync } from 'node:zlib';

const BEGINNING = '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n';

/** An image of the compressed loop device, version 2, as its README describes it. */
export function cloopImage(content: Buffer, blockBytes: number): Buffer {
  const count = Math.ceil(content.length / blockBytes);
  const blocks = Array.from({ length: count }, (_, index) => {
    const block = Buffer.alloc(blockBytes);
    content.copy(block, 0, index * blockBytes);
    return deflateSync(block);
  });
  const header = Buffer.alloc(136 + 8 * (count + 1));
  header.write(BEGINNING, 0, 'latin1');
  header.writeUInt32BE(blockBytes, 128);
  header.writeUInt32BE(count, 132);
  let place = header.length;
  for (let index = 0; index <= count; index++) {
    header.writeBigUInt64BE(BigInt(place), 136 + 8 * index);
    place += blocks[index]?.length ?? 0;
  }
  return Buffer.concat([header, ...blocks]);
}
