/** Sizes in a Zstandard frame (RFC 8878, section 3.1). */
const FRAME_MAGIC = 0xfd2fb528;
/** Frames that decoders skip: the low four bits are anything. */
const SKIPPABLE_MAGIC = 0x184d2a50;
const MAGIC_BYTES = 4;
const BLOCK_HEADER_BYTES = 3;
const CHECKSUM_BYTES = 4;
const CONTENT_SIZE_BYTES = [0, 2, 4, 8] as const;
const DICTIONARY_ID_BYTES = [0, 1, 2, 4] as const;
/** Block types. */
const RLE = 1;
const RESERVED = 3;

/** Bytes of the frame at the start of `input`; undefined when there is no whole one. */
export function zstdFrameBytes(input: Uint8Array): number | undefined {
  if (input.byteLength < MAGIC_BYTES + 1) return undefined;
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  const magic = view.getUint32(0, true);
  if ((magic & 0xfffffff0) === SKIPPABLE_MAGIC) {
    const endBytes = input.byteLength < 8 ? Infinity : 8 + view.getUint32(4, true);
    return endBytes <= input.byteLength ? endBytes : undefined;
  }
  if (magic !== FRAME_MAGIC) return undefined;
  const descriptor = view.getUint8(MAGIC_BYTES);
  const endBytes = blocksEnd(view, MAGIC_BYTES + headerBytes(descriptor));
  if (endBytes === undefined) return undefined;
  const frameBytes = endBytes + ((descriptor & 4) !== 0 ? CHECKSUM_BYTES : 0);
  return frameBytes <= input.byteLength ? frameBytes : undefined;
}

/** The descriptor and what it says that follows: window, dictionary, content size. */
function headerBytes(descriptor: number): number {
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const sizeCode = (descriptor >> 6) & 3;
  const contentSizeBytes = sizeCode === 0 && isSingleSegment ? 1 : (CONTENT_SIZE_BYTES[sizeCode] ?? 0);
  const windowBytes = isSingleSegment ? 0 : 1;
  return 1 + windowBytes + (DICTIONARY_ID_BYTES[descriptor & 3] ?? 0) + contentSizeBytes;
}

/** Where the last block ends, for blocks that begin at `at`. */
function blocksEnd(view: DataView, at: number): number | undefined {
  while (at + BLOCK_HEADER_BYTES <= view.byteLength) {
    const header = view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
    const type = (header >> 1) & 3;
    if (type === RESERVED) return undefined;
    at += BLOCK_HEADER_BYTES + (type === RLE ? 1 : header >> 3);
    if ((header & 1) !== 0) return at;
  }
  return undefined;
}
