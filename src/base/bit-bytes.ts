/** Bits in bytes, the lowest of a byte first. */

/** Sets bits [from, end). */
export function setBits(bytes: Uint8Array, from: number, end: number): void {
  for (let bit = from; bit < end;) {
    const at = Math.floor(bit / 8);
    if (bit % 8 === 0 && bit + 8 <= end) {
      const whole = Math.floor((end - bit) / 8);
      bytes.fill(0xff, at, at + whole);
      bit += 8 * whole;
    } else {
      bytes[at] = (bytes[at] ?? 0) | (1 << (bit % 8));
      bit++;
    }
  }
}

/** Sets the bits that are set in others; both are as long. */
export function addBits(bytes: Uint8Array, others: Uint8Array): void {
  for (const [index, byte] of others.entries()) bytes[index] = (bytes[index] ?? 0) | byte;
}

/** Some bit is set that is not so in `others`. */
export function hasOtherBits(bytes: Uint8Array, others: Uint8Array): boolean {
  return bytes.some((byte, index) => (byte & ~(others[index] ?? 0)) !== 0);
}
