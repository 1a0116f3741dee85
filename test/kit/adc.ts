/** Apple Data Compression of the simplest sort: copies of what comes again soon, else literal bytes. */
export function compressAdc(bytes: Buffer): Buffer {
  const out: Buffer[] = [];
  const last = new Map<string, number>();
  let literal = 0;
  const flush = (end: number): void => {
    for (; literal < end; literal += 128) {
      const part = bytes.subarray(literal, Math.min(end, literal + 128));
      out.push(Buffer.of(0x80 + part.length - 1), part);
    }
    literal = end;
  };
  for (let at = 0; at < bytes.length;) {
    const key = bytes.toString('latin1', at, at + 4);
    const before = last.get(key);
    last.set(key, at);
    let length = 0;
    if (before !== undefined && at - before <= 65536)
      while (length < 67 && at + length < bytes.length && bytes[before + length] === bytes[at + length])
        length++;
    if (before === undefined || length < 4) {
      at++;
      continue;
    }
    flush(at);
    const distance = at - before - 1;
    if (distance < 1024 && length <= 18)
      out.push(Buffer.of(((length - 3) << 2) | (distance >> 8), distance & 0xff));
    else out.push(Buffer.of(0x40 + length - 4, distance >> 8, distance & 0xff));
    at += length;
    literal = at;
  }
  flush(bytes.length);
  return Buffer.concat(out);
}
