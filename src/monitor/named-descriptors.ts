import { BlockError } from '../base/error.js';
import type { DescriptorSets } from '../host/host.js';

/** Descriptors that clients passed and gave a name (getfd), for commands that take one. */
export class NamedDescriptors {
  readonly #host: Pick<DescriptorSets, 'close'>;
  readonly #byName = new Map<string, number>();

  constructor(host: Pick<DescriptorSets, 'close'>) {
    this.#host = host;
  }

  /** One of that name goes. Errors: invalid. */
  add(name: string, fd: number): void {
    if (/^\d/.test(name)) {
      this.#host.close(fd);
      throw new BlockError('invalid', "Parameter 'fdname' expects a name not starting with a digit");
    }
    const old = this.take(name);
    if (old !== undefined) this.#host.close(old);
    this.#byName.set(name, fd);
  }

  /** Errors: not-found. */
  close(name: string): void {
    const fd = this.take(name);
    if (fd === undefined) throw new BlockError('not-found', `File descriptor named '${name}' not found`);
    this.#host.close(fd);
  }

  /** It is the caller's from here on. */
  take(name: string): number | undefined {
    const fd = this.#byName.get(name);
    this.#byName.delete(name);
    return fd;
  }

  list(): Array<{ name: string; fd: number }> {
    return [...this.#byName].map(([name, fd]) => ({ name, fd }));
  }

  closeAll(): void {
    for (const name of [...this.#byName.keys()]) this.close(name);
  }
}

/** What a client has passed under that name, for good. Errors: unsupported, not-found; in QEMU's words. */
export function passedDescriptor(
  { descriptors, kind }: { descriptors: NamedDescriptors; kind: 'machine' | 'storage-daemon' },
  name: string,
): number {
  if (kind === 'storage-daemon')
    throw new BlockError('unsupported', 'only QEMU supports file descriptor passing');
  const fd = descriptors.take(name);
  if (fd !== undefined) return fd;
  throw new BlockError('not-found', `File descriptor named '${name}' has not been found`);
}
