import { isNotSupported } from './call-error.js';
import type { HostExtent } from './host.js';
import type { CallResult } from './native-calls.js';
import type { OpenDescriptor } from './open-descriptor.js';
import { Seek, type Syscalls } from './syscalls.js';

/** What SEEK_DATA and, at data, SEEK_HOLE answered. */
interface Sought {
  position: number;
  lengthBytes: number;
  sizeBytes: number;
  data: CallResult;
  hole: number;
}

/**
 * Where a file has data and where holes; see HostFile.extentAt. Of a file that ext4 maps block by block (one that was made
 * as ext3, say), Linux calls what is not written back yet a hole: there nobody `knowsHoles`, and all is data.
 */
export class FileExtents {
  readonly #descriptor: OpenDescriptor;
  readonly #system: Syscalls;
  readonly #knowsHoles: boolean;

  constructor(descriptor: OpenDescriptor, system: Syscalls, knowsHoles: boolean) {
    this.#descriptor = descriptor;
    this.#system = system;
    this.#knowsHoles = knowsHoles;
  }

  sizeBytes(): number {
    const descriptor = this.#descriptor;
    descriptor.check();
    const size = this.#system.lseek(descriptor.fd, 0, Seek.end);
    if (size < 0) throw descriptor.error(this.#system.lastErrno());
    return size;
  }

  extentAt(position: number, lengthBytes: number): HostExtent | Promise<HostExtent> {
    const descriptor = this.#descriptor;
    descriptor.check();
    if (descriptor.isRemote) return descriptor.use(() => this.#ask(position, lengthBytes));
    const sizeBytes = this.sizeBytes();
    if (position >= sizeBytes) return { isHole: true, lengthBytes };
    if (!this.#knowsHoles) return allData(position, lengthBytes, sizeBytes);
    const value = this.#system.lseek(descriptor.fd, position, Seek.data);
    const data = { value, errno: value < 0 ? this.#system.lastErrno() : '' };
    const hole = value === position ? this.#system.lseek(descriptor.fd, position, Seek.hole) : -1;
    return this.#extentOf({ position, lengthBytes, sizeBytes, data, hole });
  }

  async #ask(position: number, lengthBytes: number): Promise<HostExtent> {
    const { fd } = this.#descriptor;
    const { value: sizeBytes, errno } = await this.#system.lseekInPool(fd, 0, Seek.end);
    if (sizeBytes < 0) throw this.#descriptor.error(errno, position);
    if (position >= sizeBytes) return { isHole: true, lengthBytes };
    const data = await this.#system.lseekInPool(fd, position, Seek.data);
    const isData = data.value === position;
    const hole = isData ? (await this.#system.lseekInPool(fd, position, Seek.hole)).value : -1;
    return this.#extentOf({ position, lengthBytes, sizeBytes, data, hole });
  }

  #extentOf({ position, lengthBytes, sizeBytes, data, hole }: Sought): HostExtent {
    if (data.value < 0) {
      if (data.errno === 'ENXIO') return { isHole: true, lengthBytes };
      if (data.errno !== 'EINVAL' && !isNotSupported(data.errno))
        throw this.#descriptor.error(data.errno, position);
      // No holes on this kind of file.
      return allData(position, lengthBytes, sizeBytes);
    }
    if (data.value > position)
      return { isHole: true, lengthBytes: Math.min(lengthBytes, data.value - position) };
    // Someone punched it between the two calls, or cut the file: calling it data is always right.
    const end = hole > position ? hole : sizeBytes;
    return { isHole: false, lengthBytes: Math.min(lengthBytes, end - position) };
  }
}

function allData(position: number, lengthBytes: number, sizeBytes: number): HostExtent {
  return { isHole: false, lengthBytes: Math.min(lengthBytes, sizeBytes - position) };
}
