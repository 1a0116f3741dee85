/** Whether a buffer holds only zero bytes. Looks at a few words first: data fails at once. */
export function isZero(buffer: Uint8Array): boolean {
  const length = buffer.length;
  if (length === 0) return true;
  if (buffer[0] !== 0 || buffer[length - 1] !== 0 || buffer[length >>> 1] !== 0) return false;
  if (length < 64) return buffer.every((byte) => byte === 0);
  // A buffer whose first byte is zero and which equals itself shifted by one byte is all zeroes.
  const view = Buffer.from(buffer.buffer, buffer.byteOffset, length);
  return view.compare(view, 1, length, 0, length - 1) === 0;
}
