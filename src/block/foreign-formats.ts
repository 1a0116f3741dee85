/** A format of images that livedisk does not open, and how its first bytes are told. */
interface ForeignFormat {
  readonly name: string;
  /** Bytes of the image from its beginning (maybe fewer than a sector), and its file name where it has one. */
  isFormatOf(header: Buffer, filename: string): boolean;
}

/**
 * An image of these that is given without a format is not taken for raw. Signatures: qcow
 * version 1; Bochs "growing" redologs; cloop 2.0. A DMG shows at its end, so by its name.
 */
const FOREIGN_FORMATS: readonly ForeignFormat[] = [
  { name: 'qcow', isFormatOf: (header) => begins(header, 'QFI\xfb\0\0\0\x01') },
  { name: 'bochs', isFormatOf: isBochs },
  { name: 'cloop', isFormatOf: (header) => begins(header, CLOOP_BEGINNING.slice(0, header.length)) },
  { name: 'dmg', isFormatOf: (_header, filename) => filename.length > 4 && filename.endsWith('.dmg') },
];

const CLOOP_BEGINNING =
  '#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n';

/** The name of the foreign format that an image's beginning shows; undefined: none. */
export function foreignFormatOf(header: Uint8Array, filename: string): string | undefined {
  const bytes = Buffer.from(header.buffer, header.byteOffset, header.length);
  return FOREIGN_FORMATS.find((format) => format.isFormatOf(bytes, filename))?.name;
}

/** Characters stand for bytes. */
function begins(header: Buffer, signature: string): boolean {
  return signature.length > 0 && header.toString('latin1', 0, signature.length) === signature;
}

/** Magic, type and subtype are texts in fields of 32, 16 and 16 bytes. */
function isBochs(header: Buffer): boolean {
  if (header.length < 68) return false;
  const field = (from: number, to: number): string =>
    header.toString('latin1', from, to).split('\0')[0] ?? '';
  const version = header.readUInt32LE(64);
  return (
    field(0, 32) === 'Bochs Virtual HD Image' &&
    field(32, 48) === 'Redolog' &&
    field(48, 64) === 'Growing' &&
    (version === 0x10000 || version === 0x20000)
  );
}
