import type { Host } from '../../host/host.js';

/** A random UUID (RFC 4122, version 4) in the order of its text. */
export function randomUuid(host: Host): Buffer {
  const bytes = host.random.bytes(16);
  bytes.writeUInt8((bytes.readUInt8(6) % 16) + 0x40, 6);
  bytes.writeUInt8((bytes.readUInt8(8) % 64) + 0x80, 8);
  return bytes;
}

/** As text, of a UUID whose bytes are in the order of its text. */
export function uuidText(uuid: Buffer): string {
  return uuid.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
