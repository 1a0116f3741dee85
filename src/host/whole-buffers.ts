import { IoVector } from '../base/io-vector.js';
import type { HostFile } from './host.js';

/** Requests of one buffer, all of it; see HostFile. */
export function readBuffer(file: HostFile, position: number, buffer: Uint8Array): Promise<void> {
  return file.read(position, IoVector.of(buffer), 0, buffer.length);
}

export function tryReadBuffer(file: HostFile, position: number, buffer: Uint8Array): boolean {
  return file.tryRead(position, IoVector.of(buffer), 0, buffer.length);
}

export function writeBuffer(file: HostFile, position: number, buffer: Uint8Array): Promise<void> {
  return file.write(position, IoVector.of(buffer), 0, buffer.length);
}

export function tryWriteBuffer(file: HostFile, position: number, buffer: Uint8Array): boolean {
  return file.tryWrite(position, IoVector.of(buffer), 0, buffer.length);
}
