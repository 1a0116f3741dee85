/**
 * The name of a format that livedisk does not open and an image's beginning shows; undefined: none. Such an image, given without
 * a format, is not taken for raw.
 */
export function foreignFormatOf(header: Buffer): string | undefined {
  return header.toString('latin1', 0, QCOW_1.length) === QCOW_1 ? 'qcow' : undefined;
}

const QCOW_1 = 'QFI\xfb\0\0\0\x01';
