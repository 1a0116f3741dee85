import { BlockError } from '../base/error.js';
import type { Host } from '../host/host.js';
import type { DriverDescription, NodeOptions } from './driver.js';
import { hasProtocol } from './filename.js';
import { foreignFormatOf } from './foreign-formats.js';
import { OptionGate } from './node-plan.js';

/** The drivers that a composition root chose. */
export class DriverRegistry {
  readonly #drivers = new Map<string, DriverDescription>();
  /** By which options of these drivers come in. */
  readonly gate = new OptionGate(this);

  constructor(drivers: Iterable<DriverDescription>) {
    for (const driver of drivers) this.#drivers.set(driver.name, driver);
  }

  [Symbol.iterator](): IterableIterator<DriverDescription> {
    return this.#drivers.values();
  }

  /** Errors: kind invalid, in QEMU's words. */
  get(name: string): DriverDescription {
    const driver = this.#drivers.get(name);
    if (!driver) throw new BlockError('invalid', `Unknown driver '${name}'`);
    return driver;
  }

  find(name: string): DriverDescription | undefined {
    return this.#drivers.get(name);
  }

  /** A format by its name on a command line (-f, format=). */
  format(name: string): DriverDescription {
    const driver = this.#drivers.get(name);
    if (!driver || driver.kind !== 'format') throw new BlockError('invalid', `Unknown driver '${name}'`);
    return driver;
  }

  /** Options of the protocol node that a plain filename stands for; a path by default. */
  parseFilename(filename: string): NodeOptions {
    for (const driver of this.#drivers.values()) {
      const options = driver.parseFilename?.(filename);
      if (options) return { driver: driver.name, ...options };
    }
    const scheme = filename.slice(0, filename.indexOf(':'));
    throw new BlockError('invalid', `Unknown protocol '${hasProtocol(filename) ? scheme : 'file'}'`);
  }

  /** Whose what lies at a path is, if it is not a file's. */
  async claimant(host: Host, path: string): Promise<DriverDescription | undefined> {
    for (const driver of this.#drivers.values()) if (await driver.claims?.(host, path)) return driver;
    return undefined;
  }

  #fallback(): string {
    for (const driver of this.#drivers.values()) if (driver.isFallback) return driver.name;
    throw new BlockError('unsupported', 'Could not determine image format: No compatible driver found');
  }

  /** The format whose signature the first bytes show, be it one that livedisk lacks; raw when none does. */
  probe(header: Uint8Array, filename = ''): string {
    let best: string | undefined;
    let score = 0;
    const bytes = Buffer.from(header.buffer, header.byteOffset, header.length);
    for (const driver of this.#drivers.values()) {
      const found = driver.probe?.(bytes, filename) ?? 0;
      if (found > score) [best, score] = [driver.name, found];
    }
    return best ?? foreignFormatOf(bytes) ?? this.#fallback();
  }
}
