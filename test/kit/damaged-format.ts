/** What of an image may be damaged. */
export interface Damageable {
  /** Stretches of the file in which headers and tables are. */
  readonly metadata: ReadonlyArray<readonly [from: number, end: number]>;
  /** Makes checksums right again. */
  readonly seal?: (bytes: Buffer) => void;
}

type Below = (limit: number) => number;

/** Values that have a meaning, or nearly so, in some field. */
function interesting(below: Below): bigint {
  switch (below(6)) {
    case 0:
      return 2n ** BigInt(below(64));
    case 1:
      return 2n ** BigInt(below(64)) - 1n;
    case 2:
      return 0xffffffffffffffffn - BigInt(below(70000));
    case 3:
      return BigInt(below(300));
    default:
      return BigInt(below(2 ** 31)) * 512n;
  }
}

/** One to three fields of headers and tables, or the file's length. */
export function damaged({ metadata, seal }: Damageable, sound: Buffer, below: Below): Buffer {
  const bytes = Buffer.from(sound);
  for (let i = 1 + below(3); i > 0; i--) {
    const [from, end] = metadata[below(metadata.length)] ?? [0, 8];
    const value = interesting(below);
    const width = [1, 2, 4, 4, 8, 8][below(6)] ?? 4;
    const at = from + below(Math.max(1, Math.floor((end - from) / width))) * width;
    for (let byte = 0; byte < width && at + byte < bytes.length; byte++) {
      const place = below(4) === 0 ? width - 1 - byte : byte;
      bytes[at + byte] = Number((value / 256n ** BigInt(place)) % 256n);
    }
  }
  if (below(4) > 0 && bytes.length === sound.length) seal?.(bytes);
  return below(12) === 0 ? bytes.subarray(0, below(bytes.length + 1)) : bytes;
}
