import { alignUp } from '../../base/align.js';
import { Abandonable } from '../../base/async.js';
import { BlockError, errnoError } from '../../base/error.js';
import { MAX_IMAGE_BYTES } from '../../base/limits.js';
import type { DriverDescription, DriverInstance, IoDriver } from '../../block/driver.js';
import type { BlockStatus, IoRequest } from '../../block/request.js';
import type { HostClock } from '../../host/host.js';
import { NULL_OPTIONS } from '../../schema/blockdev-options.js';

const SECTOR_BYTES = 512;
const IDENTITY_OPTIONS = ['size', 'read-zeroes'];

/** Answers reads with nothing or zeroes and forgets writes: for measuring, and as a stand-in. */
class NullIo implements IoDriver {
  readonly #clock: HostClock;
  readonly #latencyMs: number;
  readonly waits = new Abandonable();
  readonly #readsZeroes: boolean;

  constructor(clock: HostClock, latencyMs: number, readsZeroes: boolean) {
    this.#clock = clock;
    this.#latencyMs = latencyMs;
    this.#readsZeroes = readsZeroes;
  }

  /** Without read-zeroes the buffer is left as it is. */
  tryRead(request: IoRequest, from: number, lengthBytes: number): boolean {
    if (this.#latencyMs > 0) return false;
    if (this.#readsZeroes) request.fillZero(from, lengthBytes);
    return true;
  }

  async read(request: IoRequest, from: number, lengthBytes: number): Promise<void> {
    const { generation } = request;
    await this.#delay();
    request.assertIs(generation);
    if (this.#readsZeroes) request.fillZero(from, lengthBytes);
  }

  tryWrite(): boolean {
    return this.#latencyMs === 0;
  }

  write(): Promise<void> {
    return this.#delay();
  }

  writeZeroes(): Promise<void> {
    return this.#delay();
  }

  discard(): Promise<void> {
    return this.#delay();
  }

  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    const zero = this.#readsZeroes;
    return { lengthBytes, allocated: true, zero, data: !zero, hostOffset: offset };
  }

  async #delay(): Promise<void> {
    if (this.#latencyMs > 0) await this.waits.sleep((done) => this.#clock.setTimer(this.#latencyMs, done));
  }
}

/** A device of a given size that holds nothing. */
export function nullDriver(name: string): DriverDescription<typeof NULL_OPTIONS> {
  const plainName = `${name}://`;
  return {
    name,
    kind: 'protocol',
    options: NULL_OPTIONS,
    identityOptions: IDENTITY_OPTIONS,

    async open(context, settings): Promise<DriverInstance> {
      const { size } = settings;
      if (size > MAX_IMAGE_BYTES) {
        throw new BlockError('invalid', `Parameter 'size' expects a number from 0 to ${MAX_IMAGE_BYTES}`);
      }
      const lengthBytes = alignUp(size, SECTOR_BYTES);
      const latencyMs = settings['latency-ns'] / 1e6;
      if (latencyMs < 0) throw new BlockError('invalid', 'latency-ns is invalid');
      const io = new NullIo(context.host.clock, latencyMs, settings['read-zeroes']);
      return {
        lengthBytes,
        requestAlignmentBytes: 1,
        io,
        flush: () => io.write(),
        prepareReopen: async () => ({ commit: () => undefined, abort: () => undefined }),
        cancelInFlight: () => io.waits.abandon(errnoError('ECANCELED')),
        info: () => ({ hasNoDirtyFlag: true }),
        allocatedBytes: () => 0,
        close: () => Promise.resolve(),
      };
    },

    filename: (options) => (IDENTITY_OPTIONS.some((key) => key in options) ? undefined : plainName),
    parseFilename(filename) {
      if (!filename.startsWith(plainName)) return undefined;
      if (filename !== plainName)
        throw new BlockError('invalid', `The only allowed filename for this driver is '${plainName}'`);
      return {};
    },
  };
}

export const nullCoDriver = nullDriver('null-co');
