import type { TracePoint } from '../../base/trace.js';
import type { ChildIo, MapDriver, Reservation } from '../../block/driver.js';
import type { Mapping } from '../../block/request.js';
import { writeCompressed } from './mapping/compress.js';
import { readData, writeData } from './mapping/guest-data.js';
import { discardClusters, zeroClusters } from './mapping/zeroing.js';
import type { OpenImage } from './open-image.js';

/** Answers for the image that is open now; another one after an incoming migration. */
export class Qcow2Map implements MapDriver {
  #image: OpenImage;

  constructor(image: OpenImage) {
    this.#image = image;
  }

  get image(): OpenImage {
    return this.#image;
  }

  set image(image: OpenImage) {
    if (image !== this.#image) this.#image.tables.cache.leaveBudget();
    this.#image = image;
  }

  get clusterBytes(): number {
    return this.image.context.clusterBytes;
  }

  get unitBytes(): number {
    return this.image.context.unitBytes;
  }

  get events(): ChildIo {
    return this.image.context.meta;
  }

  get isMappingDurable(): boolean {
    return this.image.writeBack.isSettled;
  }

  /** What is not plain is compressed or encrypted. */
  readSpecial(mapping: Mapping, offset: number, buffer: Uint8Array): Promise<void> {
    return readData(this.image, mapping, offset, buffer);
  }

  writeSpecial(child: ChildIo, hostOffset: number, offset: number, buffer: Uint8Array): Promise<void> {
    return writeData(this.image.context, child, hostOffset, offset, buffer);
  }

  writeCompressed(offset: number, bytes: Uint8Array): Promise<boolean> {
    return writeCompressed(this.image, offset, bytes);
  }

  tryMap(offset: number, lengthBytes: number, out: Mapping): boolean {
    return this.image.mapper.tryMap(offset, lengthBytes, out);
  }

  map(offset: number, lengthBytes: number, out: Mapping): Promise<void> {
    return this.image.mapper.map(offset, lengthBytes, out);
  }

  mapAll(
    offset: number,
    lengthBytes: number,
    tell: (offset: number, mapping: Mapping) => void,
  ): Promise<boolean> {
    return this.image.mapper.mapAll(offset, lengthBytes, tell);
  }

  tryReserve(offset: number, lengthBytes: number): Reservation | undefined {
    const found = this.image.reserver.tryReserve(offset, lengthBytes);
    if (found && this.#trace().isOn) this.#traced(found);
    return found;
  }

  async reserve(offset: number, lengthBytes: number): Promise<Reservation> {
    const found = await this.image.reserver.reserve(offset, lengthBytes);
    if (this.#trace().isOn) this.#traced(found);
    return found;
  }

  #trace(): TracePoint {
    return this.image.context.driver.host.trace.qcow2Reserve;
  }

  #traced({ offset, lengthBytes, hostOffset }: Reservation): void {
    const { nodeName } = this.image.context.driver;
    this.#trace().say(`node '${nodeName}' offset ${offset} bytes ${lengthBytes} host offset ${hostOffset}`);
  }

  zeroClusters(offset: number, lengthBytes: number, flags: number): Promise<void> {
    return zeroClusters(this.image, offset, lengthBytes, flags);
  }

  discardClusters(offset: number, lengthBytes: number): Promise<void> {
    return discardClusters(this.image, offset, lengthBytes);
  }
}
